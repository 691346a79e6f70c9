"""How each stage does its work: plain functions over folders, with no Prefect in sight."""

__version__ = "0.1.0"
