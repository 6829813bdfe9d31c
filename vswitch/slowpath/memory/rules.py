# SPDX-License-Identifier: Apache-2.0
"""Who may have a shortcut to whom: the controller's word, or the ports' own settings, and bridging. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from controller.decide import Decision, World, decide
from controller.model import Capabilities, Endpoint, Feature, Host, Network, Path, TrustDomain, TrustMode
from vswitch.slowpath.agent.report import asked_for, is_endpoint
from vswitch.slowpath.types import PortConfig

_ETHERNET = 14  # bytes of an untagged frame's header
_HERE = "localhost"
HIDDEN = "read-only"


class Controlled(Protocol):
    """What the agent knows of the endpoints behind ports."""

    def pair(self, one: PortConfig, other: PortConfig) -> Decision | None:
        """The decision on two endpoints of this host, None while one of them is not placed here."""

    @property
    def fresh(self) -> bool:
        """Whether the controller is heard now."""


class Bridging(Protocol):
    """What the decision core is asked."""

    @property
    def revision(self) -> int: ...
    def bends(self, sender: int, receiver: int, mac: bytes) -> str: ...


def pair_of_ports(one: PortConfig, other: PortConfig) -> Decision:
    """What is decided on two ports in which no controller has a say: the same rules, on the ports' own settings."""
    ends = [replace(asked_for(config), host=_HERE) for config in (one, other)]
    return decide(ends[0], ends[1], _world(ends))


def _world(ends: list[Endpoint]) -> World:
    host = Host(_HERE, Capabilities(features=frozenset({Feature.FF_PORTS})))
    return World(
        hosts={_HERE: host},
        networks={end.network: Network(end.network, 1) for end in ends},
        trust_domains={end.trust_domain: TrustDomain(end.trust_domain) for end in ends if end.trust_domain},
    )


def obstacles(decision: Decision) -> str:
    """What stands against zero-copy, "" when nothing does."""
    if Path.ZERO_COPY in decision.usable:
        return ""
    against = [reason for refusal in decision.refused if refusal.path is Path.ZERO_COPY for reason in refusal.reasons]
    return "; ".join(str(reason) for reason in against or decision.reasons)


class PairRules:
    """`words.Rules`, from the ports' configuration and what bridging and the controller say."""

    def __init__(
        self,
        config_of: Callable[[int], PortConfig | None],
        bridging: Bridging,
        watched: Callable[[int], str],
    ) -> None:
        """`watched` says who has a look at a port's packets, "" when nobody has."""
        self._config_of, self._bridging, self._watched = config_of, bridging, watched
        self.controlled: Controlled | None = None
        self._decisions: dict[tuple[int, int], Decision | None] = {}

    def changed(self) -> None:
        """Something was told or configured: decide anew."""
        self._decisions.clear()

    # ---- words.Rules -------------------------------------------------------------

    def refuses(self, sender: int, receiver: int, mac: bytes, *, new: bool) -> str:
        """See `words.Rules`."""
        why = self.hides(sender, receiver) or self._bridging.bends(sender, receiver, mac) or self._look_at(sender)
        why = why or self._look_at(receiver) or (self._stale(sender) if new else "")
        if why:
            return why
        closed = [
            config.name for config in map(self._config_of, (sender, receiver)) if config and self._drained(config)
        ]
        return f"shortcut_quota of {closed[0]} is 0" if closed else ""

    def hides(self, owner: int, holder: int) -> str:
        """See `words.Rules`."""
        decision = self.decision(owner, holder)
        return "an end has not been placed yet" if decision is None else obstacles(decision)

    def read_only(self, owner: int, holder: int) -> bool:
        """See `words.Rules`."""
        config, decision = self._config_of(owner), self.decision(owner, holder)
        return (config is not None and config.memory == HIDDEN) or (
            decision is not None and decision.mode is TrustMode.READ_ONLY
        )

    def max_len(self, sender: int, receiver: int) -> int:
        """See `words.Rules`."""
        configs = [config for config in map(self._config_of, (sender, receiver)) if config is not None]
        return min((config.mtu for config in configs), default=0) + _ETHERNET

    def quota(self, port: int) -> int:
        """See `words.Rules`."""
        config = self._config_of(port)
        return config.shortcut_quota if config is not None else 0

    # ---- within ---------------------------------------------------------------------

    def decision(self, one: int, other: int) -> Decision | None:
        """What is decided on two ports; None: one is not there, or the controller has not placed it."""
        key = (one, other)
        if key not in self._decisions:
            self._decisions[key] = self._decide(self._config_of(one), self._config_of(other))
        return self._decisions[key]

    def _decide(self, one: PortConfig | None, other: PortConfig | None) -> Decision | None:
        if one is None or other is None:
            return None
        if self._has_say(one) and self._has_say(other) and self.controlled is not None:
            return self.controlled.pair(one, other)
        return pair_of_ports(one, other)

    def _has_say(self, config: PortConfig) -> bool:
        return self.controlled is not None and is_endpoint(config)

    def _look_at(self, port: int) -> str:
        config, who = self._config_of(port), self._watched(port)
        return f"{who} of {config.name} runs" if who and config is not None else ""

    def _stale(self, port: int) -> str:
        """A new shortcut takes fresh trust; what is there stays."""
        config = self._config_of(port)
        if config is None or not self._has_say(config) or self.controlled is None or self.controlled.fresh:
            return ""
        return "the controller is away, and new shortcuts take its word"

    @staticmethod
    def _drained(config: PortConfig) -> bool:
        return config.shortcut_quota == 0
