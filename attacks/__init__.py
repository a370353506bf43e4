"""Attacks on what clients upload, publish and export, and audits that make them.

``audit(run, attacks=[...])`` makes attacks by name or of one's own, and :func:`register` gives an
attack a name; see :mod:`.registry` for what it must provide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auditing import AuditResult, audit
    from .registry import register

__all__ = ["AuditResult", "audit", "register"]


def __getattr__(name: str) -> Any:
    # On first use: scores and the scan of bundles need no torch.
    if name in ("AuditResult", "audit"):
        from . import auditing

        return getattr(auditing, name)
    if name == "register":
        from .registry import register

        return register
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
