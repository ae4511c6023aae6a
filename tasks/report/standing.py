"""What each variant is to the verdict: what it claims, what it is the control of, and where it acts.

The only place of the report that names methods.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Standing:
    """What a variant is to the verdict."""

    name: str
    kind: Literal["original", "pruned", "random", "trained", "inference"] = "pruned"
    """The model itself; what was localized is set to zero, or as much at random; weights were trained; or the weights
    stay, and prompts are changed at inference."""
    claims: bool = False
    """Whether it claims to have removed a memory: then it is attacked from every start, and must not get worse."""
    control_of: str | None = None
    """The variant that it is compared with, of which it prunes as much."""
    always: bool = False
    """Whether it is made wherever that variant is; where it is not there, nothing was left to prune."""
    words: str = ""
    """Of a control, what it prunes."""


Standings = Mapping[str, Standing]
"""By name, in the order of tables."""


STANDINGS: Standings = {
    one.name: one
    for one in (
        Standing("original", "original"),
        Standing("nemo", claims=True),
        Standing("random-nemo", "random", control_of="nemo", always=True, words="as many random neurons"),
        Standing("nemo-union", claims=True),
        Standing("random-nemo-union", "random", control_of="nemo-union", always=True, words="as many random neurons"),
        Standing("wanda", claims=True),
        Standing("random-wanda", "random", control_of="wanda", always=True, words="as many random weights"),
        Standing("wanda-control", control_of="wanda", words="what ordinary prompts use"),
        Standing("magnitude"),
        Standing("taylor"),
        Standing("gradient"),
        Standing("random", "random", control_of="wanda", words="as many random weights"),
        Standing("adversarial-finetune", "trained", claims=True),
        Standing("surrogate-finetune", "trained"),
        Standing("ordinary-finetune", "trained"),
        Standing("lora-finetune", "trained"),
        Standing("perturbed-embedding", "inference"),
        Standing("random-tokens", "inference"),
        Standing("reweighted-attention", "inference"),
    )
}
CLAIMS = ("original", *(one.name for one in STANDINGS.values() if one.claims))
"""The model itself, and the variants that claim to have removed a memory."""
