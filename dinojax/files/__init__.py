"""How files are written: whole or not at all, never through a link, never to a URL's namesake."""
