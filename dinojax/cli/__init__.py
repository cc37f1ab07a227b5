"""The command line: one file a verb, each importing its program when it runs."""
