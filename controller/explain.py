# SPDX-License-Identifier: Apache-2.0
"""A decision for programs and for people: the path, why it was chosen, and why no better one was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from controller.codec import to_json
from controller.decide import Decision
from controller.policy import Rules
from controller.reasons import Code, Reason
from controller.scalars import protocol_name


def decision_json(decision: Decision) -> dict[str, Any]:
    """A decision as JSON's values; reasons are codes with what they are about, their sentence and advice."""
    tunnel = decision.tunnel
    return {
        "source": decision.source,
        "destination": decision.destination,
        "path": str(decision.path),
        "reasons": _reasons(decision.reasons),
        "usable": [str(path) for path in decision.usable],
        "refused": [{"path": str(one.path), "reasons": _reasons(one.reasons)} for one in decision.refused],
        "mtu": decision.mtu,
        "mode": str(decision.mode) if decision.mode else None,
        "rdma": to_json(decision.rdma.local) | {"remote": to_json(decision.rdma.remote)} if decision.rdma else None,
        "tunnel": {
            "local": str(tunnel.local),
            "remote": str(tunnel.remote),
            "uplink": tunnel.uplink,
            "mtu": tunnel.mtu,
        }
        if tunnel
        else None,
        "rules": _rules(decision.rules),
        "back_rules": _rules(decision.back_rules),
    }


def decision_lines(decision: Mapping[str, Any]) -> list[str]:
    """What `decision_json` gave, as `explain` prints it."""
    path = f"{decision['source']} → {decision['destination']}: {decision['path']}"
    if tunnel := decision["tunnel"]:
        path += f", tunnel {tunnel['local']} → {tunnel['remote']} by {tunnel['uplink']}"
    if decision["mtu"]:
        path += f", MTU {decision['mtu']}"
    lines = [path, *_reason_lines(decision["reasons"], "  ")]
    if fallback := decision.get("fallback"):
        instead = "vxlan" if decision["tunnel"] else "nothing gets through"
        lines.append(f"  at this moment {instead}: {fallback}")
    for refused in decision["refused"]:
        lines += [f"not {refused['path']}:", *_reason_lines(refused["reasons"], "  ")]
    for title, rules in (("may open", decision["rules"]), ("may be opened from there", decision["back_rules"])):
        told = [_rule_text(rule) for rule in rules]
        if any(rule["policy"] for rule in rules):
            lines.append(f"{title}: {'; '.join(told)}")
    return lines


def _reasons(reasons: Sequence[Reason]) -> list[dict[str, str]]:
    return [
        {"code": str(reason.code), "about": reason.about, "text": str(reason), "advice": reason.advice}
        for reason in reasons
    ]


def _reason_lines(reasons: Sequence[Mapping[str, str]], indent: str) -> list[str]:
    lines = []
    for reason in reasons:
        lines.append(indent + reason["text"])
        if reason["code"] != Code.BEST_POSSIBLE:
            lines.append(f"{indent}  → {reason['advice']}")
    return lines


def _rules(rules: Rules) -> list[dict[str, Any]]:
    return [
        {
            "protocol": None if rule.protocol is None else protocol_name(rule.protocol),
            "ports": None if rule.ports is None else str(rule.ports),
            "action": str(rule.action),
            "policy": rule.policy,
        }
        for rule in rules
    ]


def _rule_text(rule: Mapping[str, Any]) -> str:
    what = " ".join(str(part) for part in (rule["protocol"] or "all else", rule["ports"]) if part is not None)
    return f"{what} {rule['action']}" + (f" (policy {rule['policy']})" if rule["policy"] else "")
