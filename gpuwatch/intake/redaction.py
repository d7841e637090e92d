"""Names and texts of strangers, made fit to be stored and shown: bounded, printable, and without the secrets in them."""

from __future__ import annotations

import re

from gpuwatch_hooks import wire

MASK = "[redacted]"

# A secret's own shape, or a value behind a telling key. Names such as `token_embedding.weight` or `attn.key` are layers.
_SECRETS = re.compile(
    r"""(?x)
      \b(?:hf|ghp|gho|ghs|ghu|github_pat|glpat|xox[abprs]|npm|pypi)[_-][A-Za-z0-9_-]{16,}   # Hugging Face, GitHub, GitLab ...
    | \bsk-[A-Za-z0-9_-]{16,}                                                               # OpenAI, Anthropic
    | \b(?:AKIA|ASIA)[A-Z0-9]{12,}                                                          # AWS
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?                        # JWT
    | (?<=://)[^/@\s]+@                                                                     # user:password in a URL
    | (?i:(?<![A-Za-z])(?:password|passwd|secret|api[_-]?key|access[_-]?key|auth|token|credential)s?)\s*[=:]\s*[^\s,;&]+
    """
)
_SECRET_KEY = re.compile(
    r"(?i)(?:^|[._-])(?:password|passwd|secret|api_?key|access_?key|private_?key|auth_?token|token|credentials?)$"
)


def clean_text(text: str, limit: int = wire.MAX_NAME_CHARS) -> str:
    """`text` with secrets masked, what does not print (controls, lone surrogates, direction marks) as "_", cut to `limit`."""
    # Four times the limit is looked at, so that a cut cannot leave the recognisable half of a secret.
    text = _SECRETS.sub(MASK, text[: 4 * limit])
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "_" for c in text)
    return text[:limit]


def clean_fact(key: str, value: str | float | bool) -> str | int | float | bool:
    """A fact's value; that of a key which names a secret is masked whole."""
    if _SECRET_KEY.search(key) and isinstance(value, str):
        return MASK
    return clean_text(value, 4 * wire.MAX_NAME_CHARS) if isinstance(value, str) else value
