"""The templates that Martlet knows by itself, a module for each family: imported for what it registers."""

from stages.data.templates.families import (  # noqa: F401
    baichuan,
    chatml,
    deepseek,
    gemma,
    glm,
    llama,
    mistral,
    phi,
)
