"""Agents, by name: the class, and the settings that the name stands for."""

if __name__ != "offrl.agents":
    raise ImportError(f"this package is offrl.agents, not {__name__}")

from typing import Any

from offrl.agent import Agent
from offrl.agents.a2pr import A2PR, A2PRConfig
from offrl.agents.awac import AWAC, AWACConfig
from offrl.agents.bc import BC, BCConfig
from offrl.agents.cql import CQL, CQLConfig
from offrl.agents.diffusion_policy import DiffusionPolicy, DiffusionPolicyConfig
from offrl.agents.edac import EDAC, EDACConfig
from offrl.agents.ibc import IBC, IBCConfig
from offrl.agents.iql import IQL, IQLConfig
from offrl.agents.odice import ODICE, ODICEConfig
from offrl.agents.odice_il import ODICEIL, ODICEILConfig
from offrl.agents.prdc import PRDC, PRDCConfig
from offrl.agents.rebrac import ReBRAC, ReBRACConfig
from offrl.agents.riql import RIQL, RIQLConfig
from offrl.agents.sac_n import SACN, SACNConfig
from offrl.agents.td3_bc import TD3BC, TD3BCConfig

AGENTS: dict[str, tuple[type[Agent], Any]] = {
    "bc": (BC, BCConfig()),
    "percent_bc": (BC, BCConfig(top_fraction=0.1)),
    "td3_bc": (TD3BC, TD3BCConfig()),
    "iql": (IQL, IQLConfig()),
    "prdc": (PRDC, PRDCConfig()),
    "odice": (ODICE, ODICEConfig()),
    "odice_il": (ODICEIL, ODICEILConfig()),
    "a2pr": (A2PR, A2PRConfig()),
    "rebrac": (ReBRAC, ReBRACConfig()),
    "riql": (RIQL, RIQLConfig()),
    "sac_n": (SACN, SACNConfig()),
    "edac": (EDAC, EDACConfig()),
    "cql": (CQL, CQLConfig()),
    "awac": (AWAC, AWACConfig()),
    "diffusion_policy": (DiffusionPolicy, DiffusionPolicyConfig()),
    "ibc": (IBC, IBCConfig()),
}

__all__ = [
    "A2PR",
    "AGENTS",
    "AWAC",
    "BC",
    "CQL",
    "EDAC",
    "IBC",
    "IQL",
    "ODICE",
    "ODICEIL",
    "PRDC",
    "RIQL",
    "SACN",
    "TD3BC",
    "A2PRConfig",
    "AWACConfig",
    "BCConfig",
    "CQLConfig",
    "DiffusionPolicy",
    "DiffusionPolicyConfig",
    "EDACConfig",
    "IBCConfig",
    "IQLConfig",
    "ODICEConfig",
    "ODICEILConfig",
    "PRDCConfig",
    "RIQLConfig",
    "ReBRAC",
    "ReBRACConfig",
    "SACNConfig",
    "TD3BCConfig",
]
