"""What passes between stages: content-addressed artifacts, the keys that find them, where they came from."""
