"""Agents, by name: the class, and the settings that the name stands for."""

if __name__ != "offrl.agents":
    raise ImportError(f"this package is offrl.agents, not {__name__}")

from typing import Any

from offrl.agent import Agent
from offrl.agents.a2pr import A2PR, A2PRConfig
from offrl.agents.act import ACT, ACTConfig
from offrl.agents.act_jepa import ACTJEPA, ACTJEPAConfig
from offrl.agents.awac import AWAC, AWACConfig
from offrl.agents.awm import AWM, AWMConfig
from offrl.agents.bc import BC, BCConfig
from offrl.agents.beso import BESO, BESOConfig
from offrl.agents.chunk_bc import ChunkBC, ChunkBCConfig
from offrl.agents.consistency_bc import ConsistencyBC, ConsistencyBCConfig
from offrl.agents.cql import CQL, CQLConfig
from offrl.agents.decision_mamba import DecisionMamba, DecisionMambaConfig
from offrl.agents.diffusion_policy import DiffusionPolicy, DiffusionPolicyConfig
from offrl.agents.diffusion_ql import DiffusionQL, DiffusionQLConfig
from offrl.agents.distill import Distill, DistillConfig
from offrl.agents.doc import DoC, DoCConfig
from offrl.agents.dt import DT, DTConfig
from offrl.agents.ebt import EBT, EBTConfig
from offrl.agents.edac import EDAC, EDACConfig
from offrl.agents.flow_bc import FlowBC, FlowBCConfig
from offrl.agents.fql import FQL, FQLConfig
from offrl.agents.ibc import IBC, IBCConfig
from offrl.agents.idql import IDQL, IDQLConfig
from offrl.agents.iql import IQL, IQLConfig
from offrl.agents.odice import ODICE, ODICEConfig
from offrl.agents.odice_il import ODICEIL, ODICEILConfig
from offrl.agents.prdc import PRDC, PRDCConfig
from offrl.agents.preference import Preference, PreferenceConfig
from offrl.agents.ptp import PTP, PTPConfig
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
    "diffusion_ql": (DiffusionQL, DiffusionQLConfig()),
    "idql": (IDQL, IDQLConfig()),
    "ifql": (
        IDQL,
        IDQLConfig(
            process="flow",
            levels=10,
            candidates=32,
            dropout=0.0,
            ema=0.0,
            actor_schedule="constant",
            expectile=0.9,
            reward_by_return_range=False,
        ),
    ),
    "fql": (FQL, FQLConfig()),
    "awm": (AWM, AWMConfig()),
    "preference": (Preference, PreferenceConfig()),
    "distill": (Distill, DistillConfig()),
    "chunk_bc": (ChunkBC, ChunkBCConfig()),
    "diffusion_policy": (DiffusionPolicy, DiffusionPolicyConfig()),
    "beso": (BESO, BESOConfig()),
    "ptp": (PTP, PTPConfig()),
    "flow_bc": (FlowBC, FlowBCConfig()),
    "consistency_bc": (ConsistencyBC, ConsistencyBCConfig()),
    "ibc": (IBC, IBCConfig()),
    "ebt": (EBT, EBTConfig()),
    "act": (ACT, ACTConfig()),
    "act_jepa": (ACTJEPA, ACTJEPAConfig()),
    "dt": (DT, DTConfig()),
    "decision_mamba": (DecisionMamba, DecisionMambaConfig()),
    "doc": (DoC, DoCConfig()),
}

__all__ = [
    "A2PR",
    "ACT",
    "ACTJEPA",
    "AGENTS",
    "AWAC",
    "AWM",
    "BC",
    "BESO",
    "CQL",
    "DT",
    "EBT",
    "EDAC",
    "FQL",
    "IBC",
    "IDQL",
    "IQL",
    "ODICE",
    "ODICEIL",
    "PRDC",
    "PTP",
    "RIQL",
    "SACN",
    "TD3BC",
    "A2PRConfig",
    "ACTConfig",
    "ACTJEPAConfig",
    "AWACConfig",
    "AWMConfig",
    "BCConfig",
    "BESOConfig",
    "CQLConfig",
    "ChunkBC",
    "ChunkBCConfig",
    "ConsistencyBC",
    "ConsistencyBCConfig",
    "DTConfig",
    "DecisionMamba",
    "DecisionMambaConfig",
    "DiffusionPolicy",
    "DiffusionPolicyConfig",
    "DiffusionQL",
    "DiffusionQLConfig",
    "Distill",
    "DistillConfig",
    "DoC",
    "DoCConfig",
    "EBTConfig",
    "EDACConfig",
    "FQLConfig",
    "FlowBC",
    "FlowBCConfig",
    "IBCConfig",
    "IDQLConfig",
    "IQLConfig",
    "ODICEConfig",
    "ODICEILConfig",
    "PRDCConfig",
    "PTPConfig",
    "Preference",
    "PreferenceConfig",
    "RIQLConfig",
    "ReBRAC",
    "ReBRACConfig",
    "SACNConfig",
    "TD3BCConfig",
]
