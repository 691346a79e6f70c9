"""One module for each `martlet` command, imported only when it is called."""
