"""Every criterion against a plain second implementation: one prompt at a time, each unit by itself, in float64."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny, tokens

from amp_explore.criteria.by_grams import RIDGE
from amp_explore.criteria.layer import Evidence
from amp_explore.criteria.registry import CRITERIA, needs, score, unavailable
from amp_explore.errors import AmpExploreError
from amp_explore.models.families import as_linear, decoder_layers, layer_parts, weight_of
from amp_explore.observe import gradients
from amp_explore.observe.statistics import collect, collect_with_grams, split_windows
from amp_explore.plan import PruningPlan
from amp_explore.surgery.masking import mask
from amp_explore.texts.calibration import TokenWindows

LENGTHS = (3, 17, 9, 17, 2, 30, 5, 11, 8)


def prompts(*lengths: int) -> TokenWindows:
    return TokenWindows(tuple(tokens(1, length, seed)[0] for seed, length in enumerate(lengths)), "made up", False)


def evidence_for(loaded, windows, *criteria) -> Evidence:
    wanted = frozenset().union(*map(needs, criteria))
    activations, grams = collect_with_grams(loaded, windows)
    return Evidence(activations, gradients.collect(loaded, windows) if "gradients" in wanted else (), grams)


class Plain:
    """One layer, all prompts: x and a as lists of (T, units), the weights by name, and the gradients of each prompt."""

    def __init__(self, number, parts, seen, of_weights, held, experts):
        self.experts = experts
        self.number, self.size, self.held = number, parts.head_dim, held
        self.weights = {name: weight_of(part).double() for name, part in projections_of(parts).items()}
        self.x, self.dx = ([of[f"o.{number}"][which] for of in seen] for which in (0, 1))
        self.a, self.da = ([of[f"down.{number}"][which] for of in seen] for which in (0, 1))
        self.of_weights = of_weights
        self.heads, self.neurons = self.x[0].shape[1] // self.size, self.a[0].shape[1]
        self.group = self.heads // (len(self.weights["v"]) // self.size)

    def coupled(self, unit, index, of):
        """The part of each weight, or of each of its gradients, that goes with a unit."""
        if unit == "neuron":
            return [*(of[name][index] for name in of if name.startswith("up")), of["down"][:, index]]
        rows = slice(index * self.size, (index + 1) * self.size)
        kv = slice(index // self.group * self.size, (index // self.group + 1) * self.size)
        places = {"q": rows, "k": kv, "v": kv}
        return [*(of[name][place] for name, place in places.items() if name in of), of["o"][:, rows]]

    def inputs(self, unit, index):
        """What the unit sends into the output or the down projection, prompt by prompt (T, n), and their columns."""
        if unit == "neuron":
            return [a[:, [index]] for a in self.a], self.weights["down"][:, [index]]
        rows = slice(index * self.size, (index + 1) * self.size)
        return [x[:, rows] for x in self.x], self.weights["o"][:, rows]


def projections_of(parts):
    """By name; q and k are left out where their rows stay when a head goes."""
    named = {"q": parts.q, "k": parts.k, "v": parts.v}
    coupled = (*parts.with_head, *parts.with_kv_head)
    ups = {f"up{number}": up for number, up in enumerate(parts.up)}
    return {name: part for name, part in named.items() if part in coupled} | {"o": parts.o, **ups, "down": parts.down}


def plain_layers(loaded, windows):
    parts = [layer_parts(layer, loaded.family) for layer in decoder_layers(loaded.model)]
    seen, of_weights = [], [[] for _ in parts]
    for ids in windows.ids:
        inputs, handles = {}, []
        for number, of in enumerate(parts):
            for name, module in (("o", of.o), ("down", of.down)):

                def keep(_, given, name=f"{name}.{number}", inputs=inputs):
                    given[0].retain_grad()
                    inputs[name] = given[0]

                handles.append(module.register_forward_pre_hook(keep))
        loaded.model.requires_grad_(True)
        logits = loaded.model(ids[None], use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).backward()
        for handle in handles:
            handle.remove()
        both = {name: (x.detach(), x.grad) for name, x in inputs.items()}
        seen.append({name: tuple(each.flatten(0, -2).double() for each in pair) for name, pair in both.items()})
        for number, of in enumerate(parts):
            gradients_of = {
                name: as_linear(part, getattr(part, "module", part).weight.grad).double()
                for name, part in projections_of(of).items()
            }
            of_weights[number].append(gradients_of)
        loaded.model.zero_grad()
        loaded.model.requires_grad_(False)
    fitted, _ = split_windows(windows)
    held = [not any(ids is one for one in fitted) for ids in windows.ids]
    experts = [layer.experts for layer in loaded.shape.layers]
    return [Plain(number, of, seen, of_weights[number], held, experts[number]) for number, of in enumerate(parts)]


def mean(values):
    return sum(values) / len(values)


def all_tokens(parts):
    return torch.cat(parts)  # (tokens, n)


def amp(layer, unit, index):
    inputs, columns = layer.inputs(unit, index)
    return mean([(x @ columns.T).abs().sum(1).mean() if unit == "head" else x.abs().mean() for x in inputs])


def projected(layer, unit, index):
    inputs, columns = layer.inputs(unit, index)
    return mean([(x @ columns.T).abs().sum(1).mean() for x in inputs])


def magnitude(order):
    def plain(layer, unit, index):
        return torch.cat([part.flatten() for part in layer.coupled(unit, index, layer.weights)]).norm(order)

    return plain


def rms(parts):
    return all_tokens(parts).square().mean(0).sqrt()


def wanda(layer, unit, index):
    inputs, columns = layer.inputs(unit, index)
    return (columns.abs().mean(0) * rms(inputs)).sum()


def flap(layer, unit, index):
    inputs, columns = layer.inputs(unit, index)
    return (all_tokens(inputs).var(0, correction=0) * columns.square().sum(0)).mean()


def minitron(layer, unit, index):
    inputs, _ = layer.inputs(unit, index)
    return mean([x.norm(dim=1).mean().square() for x in inputs]).sqrt()


def cfsp(layer, unit, index):
    if unit == "head":
        return amp(layer, unit, index)
    activity = rms(layer.a)
    down = layer.weights["down"].abs().sum(0) * activity
    ups = [weight.abs().sum(1) for name, weight in layer.weights.items() if name.startswith("up")]
    return sum((part / part.sum())[index] for part in (down, *ups)) * activity[index]


def products(layer, unit, index):
    """For each prompt, all w g of the unit."""
    weights = layer.coupled(unit, index, layer.weights)
    return [
        torch.cat([(w * g).flatten() for w, g in zip(weights, layer.coupled(unit, index, of), strict=True)])
        for of in layer.of_weights
    ]


def taylor(layer, unit, index):
    return mean([p.sum() for p in products(layer, unit, index)]).abs()


def taylor_second(layer, unit, index):
    return mean([p.sum() - p.square().sum() / 2 for p in products(layer, unit, index)]).abs()


def gblm(layer, unit, index):
    inputs, columns = layer.inputs(unit, index)
    gradients = mean([layer.coupled(unit, index, of)[-1].abs() for of in layer.of_weights])
    return (columns.abs().sum(0) * rms(inputs)).sum() + (columns.abs().flatten() * gradients.flatten()).sum()


def relevance(layer, unit, index):
    values, slopes = (layer.x, layer.dx) if unit == "head" else (layer.a, layer.da)
    size = layer.size if unit == "head" else 1
    rows = slice(index * size, (index + 1) * size)
    return mean([(v[:, rows] * s[:, rows]).sum(1).abs().mean() for v, s in zip(values, slopes, strict=True)])


def spectrum(layer, unit, index):
    if unit == "head":
        return amp(layer, unit, index)
    lost = 0.0
    for name, weight in layer.weights.items():
        if name in "qkvo":
            continue
        units = weight.T if name == "down" else weight  # (neurons, n)
        eigenvalues, vectors = torch.linalg.eigh(units.T @ units)
        eigenvalues = eigenvalues.clamp(min=0)
        after = (eigenvalues - (units[index] @ vectors).square()).clamp(min=0)
        lost += (eigenvalues.sqrt() - after.sqrt())[-min(units.shape) :].sum()
    return lost


def obs(layer, unit, index):
    """The rise of the ridge-regularised error after the best re-fit, found by least squares on the rest."""
    parts, weight = (layer.x, layer.weights["o"]) if unit == "head" else (layer.a, layer.weights["down"])
    size = layer.size if unit == "head" else 1
    inputs = all_tokens([p for p, held in zip(parts, layer.held, strict=True) if not held])
    gram = inputs.T @ inputs / len(inputs)
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    rest = [i for i in range(len(gram)) if not index * size <= i < (index + 1) * size]
    fitted = torch.linalg.solve(gram[rest][:, rest], gram[rest] @ weight.T).T
    change = weight.clone()
    change[:, rest] -= fitted
    return torch.trace(change @ gram @ change.T)


@lru_cache
def obs_one_by_one(layer, unit):
    """Errors up to each unit's going, each found by fitting anew what is left from the start."""
    parts, weight = (layer.x, layer.weights["o"]) if unit == "head" else (layer.a, layer.weights["down"])
    size = layer.size if unit == "head" else 1
    inputs = all_tokens([p for p, held in zip(parts, layer.held, strict=True) if not held])
    gram = inputs.T @ inputs / len(inputs)
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram))

    def error(units):
        rest = [i for unit in units for i in range(unit * size, (unit + 1) * size)]
        change = weight.clone()
        change[:, rest] -= torch.linalg.solve(gram[rest][:, rest], gram[rest] @ weight.T).T
        return float(torch.trace(change @ gram @ change.T))

    left, found = set(range(len(gram) // size)), {}
    while left:
        after = {unit: error(sorted(left - {unit})) for unit in left}
        goes = min(after, key=after.get)
        found[goes] = after[goes]
        left.remove(goes)
    return found


def obs_greedy(layer, unit, index):
    return obs_one_by_one(layer, unit)[index]


def routed(layer, unit, index):
    if unit == "head" or layer.experts == 1:
        return amp(layer, unit, index)
    width = layer.neurons // layer.experts
    first = index // width * width
    columns = layer.weights["down"][:, first : first + width]
    return all_tokens([a[:, first : first + width] @ columns.T for a in layer.a]).norm(dim=1).mean()


def reversed_(layer, unit, index):
    return -amp(layer, unit, index)


PLAIN = {
    "amp": amp, "amp-projection": projected, "magnitude": magnitude(2), "magnitude-l1": magnitude(1),
    "wanda-sp": wanda, "flap": flap, "minitron": minitron, "cfsp": cfsp, "taylor": taylor,
    "taylor-second": taylor_second, "gblm-style": gblm, "relevance": relevance, "spectrum": spectrum, "obs": obs,
    "obs-greedy": obs_greedy, "reversed": reversed_, "routed-output": routed,
}  # fmt: skip


def test_every_criterion_has_a_plain_twin():
    assert {*PLAIN, "random"} == set(CRITERIA)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_plain_ones(family):
    loaded, windows = tiny(family), prompts(*LENGTHS)
    evidence, layers = evidence_for(loaded, windows, *PLAIN), plain_layers(loaded, windows)
    for name, plain in PLAIN.items():
        if unavailable(name, loaded):
            continue
        got = score(loaded, evidence, name)
        for layer in layers:
            for unit, count in (("head", layer.heads), ("neuron", layer.neurons)):
                expected = np.array([float(plain(layer, unit, index)) for index in range(count)])
                found = getattr(got, f"{unit}s")[layer.number]
                np.testing.assert_allclose(
                    found, expected, rtol=2e-3, atol=2e-5 * np.abs(expected).max(), err_msg=f"{name}, {unit}s"
                )


def test_means_over_prompts_are_not_means_over_all_tokens():
    """AMP's averages are of prompts; here the prompts differ enough to tell the two apart."""
    loaded, windows = tiny("llama"), prompts(*LENGTHS)
    got = collect(loaded, windows)
    over_tokens = [all_tokens([a.abs() for a in layer.a]).mean(0).float() for layer in plain_layers(loaded, windows)]
    assert not any(
        torch.allclose(layer.neuron_magnitude, other, rtol=1e-3) for layer, other in zip(got, over_tokens, strict=True)
    )


def test_random_scores_are_the_same_each_time_and_differ_between_layers():
    loaded = tiny("llama")
    one, two = (score(loaded, Evidence(), "random") for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one.neurons, two.neurons, strict=True))
    assert not np.array_equal(one.neurons[0], one.neurons[1])


def test_heads_can_be_scored_by_another_criterion():
    loaded = tiny("llama")
    evidence = evidence_for(loaded, prompts(*LENGTHS), "amp")
    both = score(loaded, evidence, "cfsp", "flap")
    for layer in range(len(both.heads)):
        assert np.array_equal(both.heads[layer], score(loaded, evidence, "flap").heads[layer])
        assert np.array_equal(both.neurons[layer], score(loaded, evidence, "cfsp").neurons[layer])


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_layer_that_lost_all_its_units_is_scored_on(family):
    """As pruning in small steps does before each."""
    loaded, plan = tiny(family), PruningPlan.empty(tiny(family).shape)
    for unit in ("heads", "neurons"):
        plan = plan.with_units(unit, 1, np.ones(getattr(loaded.shape.layers[1], unit), bool), True)
    evidence = evidence_for(replace(loaded, model=mask(loaded, plan)), prompts(*LENGTHS), *CRITERIA)
    for criterion in CRITERIA:
        if not unavailable(criterion, loaded):
            score(loaded, evidence, criterion)  # raises where a score is not finite


@pytest.mark.parametrize(
    ("criterion", "heads", "says"),
    [
        ("magic", None, "'magic' is not known; use one of amp, amp-projection"),
        ("amp", "magic", "'magic' is not known"),
        ("amp", "cfsp", "'cfsp' scores neurons alone"),
    ],
)
def test_criteria_that_do_not_work_are_refused(criterion, heads, says):
    with pytest.raises(AmpExploreError, match=says):
        score(tiny("llama"), Evidence(), criterion, heads)


def test_gradients_leave_the_dense_model_as_it_was():
    loaded, ids, windows = tiny("gemma2"), tokens(1, 20), prompts(9, 5)
    with torch.inference_mode():
        before = loaded.model(ids).logits
        asked = []
        gradients.collect(loaded, windows, progress=lambda *report: asked.append(report))
        assert torch.equal(loaded.model(ids).logits, before)
    assert asked == [(0, 2, "gradients"), (1, 2, "gradients"), (2, 2, "gradients")]
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_gradients_of_prompts_without_a_next_token_are_refused():
    with pytest.raises(AmpExploreError, match="take a longer text"):
        gradients.collect(tiny("llama"), prompts(1, 1))
