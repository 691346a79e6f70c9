"""Engines that generate, and the OpenAI-compatible server before them."""
