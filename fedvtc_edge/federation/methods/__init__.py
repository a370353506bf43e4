"""Methods by name: FedVTC and the baselines, on one harness."""

from typing import cast

from fedvtc_edge.config import Config
from fedvtc_edge.errors import ConfigError
from fedvtc_edge.federation.federation import Federation
from fedvtc_edge.plugins import METHODS

from .base import Knob, Method, calibrated
from .ccvr import CCVR
from .closed_form import AFL, FisherMix, StatisticsOnly
from .example import ExampleFedVTC
from .fedcof import FedCOF
from .fedgen import FedGen
from .fedgh import FedGH
from .fedkd import FedKD
from .fedmd import FedMD
from .fedmrl import FedMRL
from .fedproto import FedProto
from .fedtgp import FedTGP
from .fedtype import FedType
from .fedvtc import FedVTC
from .fml import FML
from .supervised import Centralised, Local, LocalMatched

__all__ = ["FedVTC", "Federation", "Knob", "Method", "calibrated", "method_of", "register"]


def register(name: str, method: type[Method]) -> type[Method]:
    """Make a method available as ``method.name``.

    Raises:
        ConfigError: The name is taken, or it is no method.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(
            f"method {name!r} is {method!r:.80}, expected a subclass of Method",
            hint="subclass fedvtc_edge.federation.methods.Method; see docs/plugins.md",
        )
    METHODS.register(name, method)
    return method


def method_of(config: Config) -> type[Method]:
    """The method that the settings name, as their privacy mode asks for.

    Raises:
        ConfigError: No such method, or one without a guarantee in that mode.
    """
    kind = cast(type[Method], METHODS.find(config.method.name))
    mode = config.privacy.mode
    if mode == "none":
        return kind
    if mode not in kind.variants:
        raise ConfigError(
            f"privacy.mode = {mode!r} with method.name = {config.method.name!r}: what that "
            "method uploads is not noised",
            hint='use method.name = "fedvtc", or privacy.mode = "none"',
        )
    return kind.variants[mode]


FedVTC.variants = {"anchored": FedVTC, "example": ExampleFedVTC, "client": FedVTC}
for _kind in (StatisticsOnly, AFL, FisherMix):
    _kind.variants = {"anchored": _kind, "client": _kind}
register("fedvtc", FedVTC)
register("statistics", StatisticsOnly)
register("afl", AFL)
register("fishermix", FisherMix)
register("fedcof", FedCOF)
register("local", Local)
register("local-matched", LocalMatched)
register("fedproto", FedProto)
register("fedgh", FedGH)
register("fedtgp", FedTGP)
register("fedgen", FedGen)
register("ccvr", CCVR)
register("centralised", Centralised)
register("fml", FML)
register("fedkd", FedKD)
register("fedmrl", FedMRL)
register("fedmd", FedMD)
register("fedtype", FedType)
