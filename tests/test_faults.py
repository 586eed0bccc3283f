"""A fault planted in any line of an agent's update is noticed."""

import parity
import plant_faults
import pytest
from fault import Fault
from plant_faults import COVERED, FAULTS

METHODS = plant_faults.methods()
PLACES = sorted({fault.where for fault in FAULTS})


@pytest.mark.parametrize("case", parity.CASES)
def test_nothing_is_noticed_without_a_fault(case: str) -> None:
    assert plant_faults.noticed(None, case) is None


@pytest.mark.parametrize("where", PLACES)
def test_every_fault_is_noticed(where: str) -> None:
    survivors = [
        f"{case}: {fault}"
        for fault in FAULTS
        if fault.where == where
        for case in fault.cases
        if plant_faults.noticed(fault, case) is None
    ]
    assert not survivors


@pytest.mark.parametrize("module", METHODS)
def test_every_line_of_an_update_has_a_fault(module: str) -> None:
    assert not plant_faults.uncovered(module, METHODS[module])


@pytest.mark.parametrize("where", COVERED)
def test_every_line_that_agents_share_has_a_fault(where: str) -> None:
    assert not plant_faults.untouched(where)


def test_a_line_without_a_fault_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [f for f in FAULTS if f.where != "agents.iql.IQL.target_q"]
    monkeypatch.setattr(plant_faults, "FAULTS", others)
    missing = plant_faults.uncovered("agents.iql", METHODS["agents.iql"])
    assert len(missing) == 1 and all("target_q" in line for line in missing)


def test_the_real_modules_come_back() -> None:
    from offrl.agents import prdc
    from offrl.losses import td_loss

    fault = next(f for f in FAULTS if f.where == "losses.td_loss")
    with plant_faults.planted(fault, "prdc") as cls:
        assert cls is not prdc.PRDC
        assert cls.__name__ == "PRDC"
    from offrl.losses import td_loss as after

    assert after is td_loss


def test_a_fault_must_stand_once_in_its_function() -> None:
    vague = Fault("losses.td_loss", "t", "u", ("iql",))
    with pytest.raises(ValueError, match="times in the function"):
        plant_faults.patched(vague)
