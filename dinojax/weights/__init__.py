"""Published formats, in and out, with a certificate of equality."""
