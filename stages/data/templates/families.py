"""The templates that Martlet knows by itself: imported for what it registers."""

from stages.data.templates import chatml  # noqa: F401
