"""The hubs that models are published on."""
