"""How much of a memory is left while neurons are blocked, with as few passes of the denoiser as decide it.

Unblocked noise differences are taken once. A score is a maximum over seeds, so the seed that was worst last is looked
at first, and a set that has failed by one seed is not looked at by others. Sets that will be asked about if all goes
well are looked at together: first all of them by the worst seed, then by the other seeds. So the neurons found are
those of the plain procedure.

When not `thorough`, the other seeds look only at the last of a run of sets that pass by the worst seed, and at all of
them only if the last fails. As each set of a run blocks less than the one before, the last has most of the memory; the
neurons found differ only if another seed's memory came back along the run and went away again at its end.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter

import torch

from tasks.diffusion.batches import in_batches
from tasks.diffusion.detection import noise_differences
from tasks.diffusion.families import Model
from tasks.diffusion.footprint import fitting
from tasks.diffusion.hooks import scaled
from tasks.diffusion.sites import Layer
from tasks.diffusion.ssim import similarity
from tasks.localize.search import AHEAD, Candidates


class BlockedScore:
    """Maximum over seeds of the similarity of noise differences without and with blocked neurons; a `search.Score`."""

    def __init__(
        self,
        model: Model,
        layers: tuple[Layer, ...],
        embedding: torch.Tensor,
        noise: torch.Tensor,
        unblocked: torch.Tensor,
        timestep: float,
        batch: int,
        thorough: bool = True,
    ) -> None:
        """
        Args:
            embedding: (tokens, width).
            noise: initial latents of the watched seeds, (seeds, channels, height, width).
            unblocked: their noise differences with all neurons active, of the same shape.
            batch: samples in a pass at most.
            thorough: whether every seed looks at every set that passes.
        """
        self._model, self._layers, self._embedding = model, layers, embedding
        self._noise, self._unblocked, self._timestep, self._batch = noise, unblocked, timestep, batch
        self._thorough = thorough
        self._known: dict[tuple[Candidates, int], float] = {}
        self._latest = [0.0] * len(noise)
        self._ahead = 1
        self.evaluations = 0
        """Samples that went through the denoiser."""

    def __call__(self, chain: Sequence[Candidates], failed: Callable[[float], bool]) -> list[float]:
        seeds = sorted(range(len(self._noise)), key=lambda seed: -self._latest[seed])
        ahead = chain[: self._ahead]
        self._look([(candidates, seeds[0]) for candidates in ahead])
        hopeful = self._until_failure(ahead, failed)
        others = seeds[1:]
        if not self._thorough:
            self._look([(candidates, seed) for candidates in hopeful[-1:] for seed in others], failed)
        if self._thorough or (hopeful and failed(self._highest(hopeful[-1]))):
            self._look([(candidates, seed) for candidates in hopeful for seed in others], failed)
        looked_at = self._until_failure(ahead, failed, with_failure=True)
        # The further it went without failing, the further it is worth looking ahead.
        room = max(1, self._batch // len(seeds)) if self._thorough else AHEAD
        self._ahead = 1 if failed(self._highest(looked_at[-1])) else min(2 * self._ahead, room)
        return [self._highest(candidates) for candidates in looked_at]

    def exact(self, candidates: Candidates) -> float:
        """The score over all watched seeds."""
        return self([candidates], lambda value: False)[0]

    def by_one_seed(self, sets: Sequence[Candidates]) -> list[float]:
        """The scores of these sets over the first watched seed alone, to rank them by."""
        self._look([(candidates, 0) for candidates in sets])
        return [self._known[candidates, 0] for candidates in sets]

    def _highest(self, candidates: Candidates) -> float:
        return max(self._known.get((candidates, seed), -1.0) for seed in range(len(self._noise)))

    def _until_failure(
        self, chain: Sequence[Candidates], failed: Callable[[float], bool], with_failure: bool = False
    ) -> list[Candidates]:
        out = []
        for candidates in chain:
            bad = failed(self._highest(candidates))
            if with_failure or not bad:
                out.append(candidates)
            if bad:
                break
        return out

    def _look(
        self, wanted: list[tuple[Candidates, int]], failed: Callable[[float], bool] = lambda value: False
    ) -> None:
        """Makes scores known, in order and batch by batch, until a set has failed."""
        unknown = [pair for pair in wanted if pair not in self._known]
        for candidates, seed in unknown:
            if not candidates:
                self._known[candidates, seed] = 1.0  # nothing is blocked
        unknown = [pair for pair in unknown if pair[0]]

        batch = fitting(self._model, "evaluation", self._batch)
        for done in in_batches(len(unknown), batch, lambda rows: self._scores(unknown[rows])):
            for (candidates, seed), value in done:
                self._known[candidates, seed] = self._latest[seed] = value
                if failed(value):
                    return  # what else this batch saw is forgotten, so that the batch's size does not matter

    @torch.no_grad()
    def _scores(self, pairs: list[tuple[Candidates, int]]) -> list[tuple[tuple[Candidates, int], float]]:
        factors = {
            layer.index: torch.ones(len(pairs), layer.outputs)
            for layer in self._layers
            if any(index == layer.index for candidates, _ in pairs for index, _ in candidates)
        }
        for row, (candidates, _) in enumerate(pairs):
            for index, of_layer in groupby(sorted(candidates), key=itemgetter(0)):
                factors[index][row, [neuron for _, neuron in of_layer]] = 0
        factors = {index: factor.to(self._noise) for index, factor in factors.items()}
        seeds = [seed for _, seed in pairs]
        text = self._embedding.expand(len(pairs), -1, -1)
        blocking = scaled(self._layers, factors)
        blocked = noise_differences(self._model, text, self._noise[seeds], self._timestep, blocking)
        self.evaluations += len(pairs)
        values = similarity(self._unblocked[seeds], blocked).tolist()
        return list(zip(pairs, values, strict=True))
