"""What the trainer optimises: the losses of `offrl.lm.losses` by name, each with its settings.

    pairs           a pair loss of both answers' scores
    labels          a unary loss of an answer and its label
    groups          a list loss, a policy gradient on scored answers, or values of tokens
    demonstrations  a token loss

An objective returns one loss per item, an example, an answer or a token; the trainer adds them up
and divides by how many items the whole update has, over micro-batches and processes, so that how a
batch is cut changes nothing. Two have numbers of the micro-batch in them: kto the KL that is its
baseline, bnpo the law of the rewards.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from offrl.errors import ConfigError, near
from offrl.lm.data import Form
from offrl.lm.losses import LEFT_OUT, METHODS, describe
from offrl.lm.losses.advantages import standardised
from offrl.lm.losses.groups import GROUP_METHODS, group_loss
from offrl.lm.losses.lists import boltzmann, optimal_value
from offrl.lm.losses.scores import Scores
from offrl.lm.losses.tokens import sft
from offrl.lm.losses.unary import kto_baseline
from offrl.lm.values import Ilql

Batch = Mapping[str, Any]
Counted = Literal["examples", "answers", "tokens"]
FORMS: Mapping[str, Form] = {
    "pair": "pairs",
    "unary": "labels",
    "list": "groups",
    "group": "groups",
    "token": "demonstrations",
    "value": "groups",
}
# Losses of the library that a file of examples is not enough for.
UNTRAINED = MappingProxyType(
    {
        "vpo": "needs answers of a calibration law; on the chosen answers it is rpo",
        "xpo": "needs samples of the reference for each pair, drawn while training",
        "inpo": "needs the log-probabilities of a previous iterate",
        "rrpo": "needs the spans in which answers differ",
        "bvpo": "needs each answer with and without its reasoning trace",
        "nash_md": "needs samples of the policy, drawn while training",
        "otr": "needs samples of the policy at every token; dft is its expectation",
    }
)
# What an objective computes itself, and what is chosen for it.
_OWN = {"kto": ("baseline",), "a_star_po": ("value",), "ilql": ("target_q",)}
_HIDDEN = {"pair": ("link", "residual", "against"), "list": ("residual",)}
_MORE: Mapping[str, Mapping[str, tuple[float, str]]] = {
    "adpo": {"temperature": (0.5, "of the target law, softmax(standardised rewards / T)")},
    "a_star_po": {"temperature": (0.5, "of the value of a prompt, T log mean e^(r / T)")},
    "ilql": {
        "bc_weight": (1.0, "of the cross-entropy of the model's own head, which is decoded from"),
        "polyak": (0.005, "how far the targets of Q move in an update"),
    },
}


@dataclass(frozen=True)
class Option:
    """A setting of a method."""

    name: str
    default: float | str | None  # None where it must be given
    choices: tuple[str, ...] = ()
    column: bool = False  # a column of the data may stand for the number
    about: str = ""

    def parse(self, text: str) -> float | str:
        """The value of a word of the command line; raises ConfigError where it is none."""
        if self.choices:
            if text not in self.choices:
                raise ConfigError(
                    f"{self.name} is {text!r}{near(text, self.choices) or ';'} it is one of "
                    f"{', '.join(self.choices)}"
                )
            return text
        try:
            return float(text)
        except ValueError:
            if self.column and text.isidentifier():
                return text
            what = "a number or a column of the data" if self.column else "a number"
            raise ConfigError(f"{self.name} is {text!r}; it must be {what}") from None


@dataclass(frozen=True)
class Objective:
    """A method with its settings: what it needs of a batch, and its loss."""

    name: str
    family: str
    options: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def form(self) -> Form:
        return FORMS[self.family]

    @property
    def least_answers(self) -> int:
        """How many answers a group must have: one where no rule compares answers."""
        alone = ("topr", "topr_token", "asymre", "psr", "nsr", "w_reinforce", "a_star_po")
        return 1 if self.name in alone or self.has_values else 2

    @property
    def counted(self) -> Counted:
        """What the sum of losses is divided by."""
        if self.family in ("token", "value"):
            return "tokens"
        if self.family == "group":
            return "tokens" if GROUP_METHODS[self.name].mode == "token_mean" else "answers"
        return "examples"

    @property
    def needs_reference(self) -> bool:
        if self.family == "group":
            return bool(self.options.get("kl"))
        if self.options.get("against", "ref") != "ref":
            return False
        return "reference" in describe(METHODS[self.family][self.name]).data

    @property
    def needs_behavior(self) -> Literal["no", "sums", "tokens", "if there"]:
        """Which log-probabilities of the sampler it reads."""
        if self.family == "group":
            method = GROUP_METHODS[self.name]
            if method.any_data:
                return "if there"
            return "tokens" if method.ratio == "token" else "sums"
        return "sums" if self.options.get("against") == "old" else "no"

    @property
    def needs_logits(self) -> bool:
        return self.family == "token"

    @property
    def has_values(self) -> bool:
        """Whether it learns values of tokens, by heads beside the model's."""
        return self.family == "value"

    @property
    def mismatched(self) -> bool:
        """Whether answers under the prompts of others are scored too."""
        return self.name == "kto"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data that stand for settings."""
        known = {o.name: o for o in options_of(self.name)}
        return tuple(v for k, v in self.options.items() if isinstance(v, str) and known[k].column)

    def loss(self, scores: Scores, batch: Batch, longest: int, mismatched: Any = None) -> Tensor:
        """Losses of the items of a micro-batch, or their sum where the method adds them up."""
        settings = {k: self._value(k, v, batch) for k, v in self.options.items()}
        if self.family == "group":
            return group_loss(
                scores,
                batch["rewards"],
                batch["member"],
                method=GROUP_METHODS[self.name],
                kl=float(settings["kl"]),
                total=1.0,
                max_length=longest,
            )
        function = METHODS[self.family][self.name]
        if self.family == "pair":
            return function(_answer(scores, 0), _answer(scores, 1), **settings)
        if self.family == "unary":
            if mismatched is not None:
                settings["baseline"] = mismatched
            return function(_answer(scores, 0), batch["label"], **settings)
        rewards, member = batch["rewards"], batch["member"]
        if self.name == "adpo":
            z = standardised(rewards, member, eps=1e-8)
            rewards = boltzmann(z, member, temperature=float(settings.pop("temperature")))
        if self.name == "a_star_po":
            settings["value"] = optimal_value(
                rewards, member, temperature=float(settings.pop("temperature"))
            )
        return function(scores, rewards, member, **settings)

    def _value(self, name: str, value: float | str, batch: Batch) -> Any:
        """A setting as the loss takes it: of each example where it may be a column."""
        if name not in {o.name for o in options_of(self.name) if o.column}:
            return value
        rewards: Tensor = batch["rewards"]
        return (
            batch[value] if isinstance(value, str) else rewards.new_full(rewards.shape[:1], value)
        )

    def token_loss(
        self, logits: Tensor, labels: Tensor, mask: Tensor, ref_logits: Tensor | None
    ) -> Tensor:
        """Losses of tokens, 0 outside the mask."""
        anchor = () if ref_logits is None else (ref_logits,)
        return METHODS["token"][self.name](logits, labels, mask, *anchor, **self.options)

    def value_loss(
        self,
        logits: Tensor,
        q: Tensor,
        target_q: Tensor,
        value: Tensor,
        labels: Tensor,
        mask: Tensor,
        rewards: Tensor,
    ) -> Tensor:
        """Losses of tokens, 0 outside the mask: of their values, and of the policy's cloning."""
        own = ("bc_weight", "polyak")
        settings = {k: v for k, v in self.options.items() if k not in own}
        values = METHODS["value"][self.name](
            q, value, labels, mask, rewards, target_q=target_q, **settings
        )
        return values + float(self.options["bc_weight"]) * sft(logits, labels, mask)


def baseline(mismatched: Scores) -> Tensor:
    """kto's z_0, a constant of the micro-batch."""
    return kto_baseline(mismatched)


def _answer(scores: Scores, k: int) -> Scores:
    """The k-th answer of each example."""
    ref = None if scores.ref_logp is None else scores.ref_logp[:, k]
    return Scores(scores.logp[:, k], ref, scores.mask[:, k])


def names() -> dict[str, str]:
    """Method -> family, of what can be trained from a file."""
    found = {
        name: family
        for family in ("pair", "unary", "list", "token", "value")
        for name in METHODS[family]
        if name not in UNTRAINED
    }
    return found | dict.fromkeys(GROUP_METHODS, "group")


def options_of(name: str) -> tuple[Option, ...]:
    """The settings of a method, from the signature of its loss."""
    family = names()[name]
    if family == "group":
        return (Option("kl", 0.0, about="weight of k3 towards the reference on every token"),)
    hidden = (*_HIDDEN.get(family, ()), *_OWN.get(name, ()))
    found = []
    for parameter in inspect.signature(METHODS[family][name]).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name in hidden:
            continue
        default = None if parameter.default is parameter.empty else parameter.default
        literal = get_origin(parameter.annotation) is Literal
        choices = get_args(parameter.annotation) if literal else ()
        if parameter.name == "against":
            choices = ("ref", "old")
        column = not choices and parameter.annotation is not float
        found.append(Option(parameter.name, default, tuple(choices), column))
    more = _MORE.get(name, {})
    return (*found, *(Option(k, value, about=about) for k, (value, about) in more.items()))


def objective(name: str, given: Mapping[str, float | str] | None = None) -> Objective:
    """A method by name with its settings; those that are not given have their defaults.

    Raises ConfigError where there is no such method or setting, and where one must be given.
    """
    known, given = names(), given or {}
    if name not in known:
        why = UNTRAINED.get(name) or LEFT_OUT.get(name)
        if why:
            raise ConfigError(f"{name} cannot be trained from a file of examples: it {why}")
        raise ConfigError(
            f"there is no method {name!r} to train with{near(name, known) or ';'} they are "
            f"{', '.join(known)}"
        )
    options = {option.name: option for option in options_of(name)}
    for option in given:
        if option not in options:
            has = ", ".join(options) or "none"
            raise ConfigError(
                f"{name} has no setting {option!r}{near(option, options) or ';'} it has {has}"
            )
    values = {**{k: o.default for k, o in options.items()}, **given}
    for option, value in values.items():
        if value is None:
            raise ConfigError(
                f"{name} needs a value of {option}, for which no paper gives a default: "
                f"--{option.replace('_', '-')} VALUE"
            )
    if name == "ilql":
        Ilql(**values)  # type: ignore[arg-type]  # whose check it is
    return Objective(name, known[name], {k: v for k, v in values.items() if v is not None})


def summary(scores: Scores, batch: Batch, form: Form) -> dict[str, Tensor]:
    """What is worth watching of a micro-batch, without a gradient: one number each."""
    member = batch["member"]
    logp = torch.where(scores.mask != 0, scores.logp.detach(), 0.0).sum(-1)
    found = {"logp": logp[member].mean()}
    if scores.ref_logp is not None:
        u = logp - torch.where(scores.mask != 0, scores.ref_logp, 0.0).sum(-1)
        found["log_ratio"] = u[member].mean()
        logp = u
    if form == "pairs":
        gap = logp[:, 0] - logp[:, 1]
        found |= {"gap": gap.mean(), "accuracy": (gap > 0).float().mean()}
    return found
