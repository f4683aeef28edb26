"""Captions of a scene, in one of several phrasings chosen at random."""

from __future__ import annotations

import numpy as np

from fastdiff.zoo.training.scene import Background, Object, Scene

__all__ = ["caption"]

PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "inside": ("inside", "within"),
}


def caption(scene: Scene, rng: np.random.Generator, plain: bool = False) -> str:
    """A caption of ``scene``; with ``plain`` the shortest one that still names all objects and relations."""
    names = [_name(o, not plain and bool(rng.random() < 0.5), rng) for o in scene.objects]
    if len(names) == 1:
        text = names[0]
    elif scene.relation is None:
        text = f"{names[0]} and {names[1]}"
    else:
        relation = scene.relation if plain else str(rng.choice(PHRASES[scene.relation]))
        text = f"{names[0]} {relation} {names[1]}"
    if scene.third_relation is not None:
        third = scene.third_relation if plain else str(rng.choice(PHRASES[scene.third_relation]))
        text += f" with {names[2]} {third} both"
    if not plain and rng.random() < 0.7:
        text += _ground(scene.background, rng)
    return text


def _name(o: Object, sized: bool, rng: np.random.Generator) -> str:
    words = f"{o.size} {o.colour} {o.shape}" if sized else f"{o.colour} {o.shape}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _ground(b: Background, rng: np.random.Generator) -> str:
    link = str(rng.choice([" on", ", on"]))
    if b.kind == "plain":
        return f"{link} a {rng.choice(['', 'plain '])!s}{b.first} background"
    if b.kind == "gradient":
        return f"{link} a {b.first} to {b.second} gradient"
    pattern = {"striped": ("striped", "stripes"), "checkered": ("checkered", "checks")}[b.kind]
    if rng.random() < 0.5:
        return f"{link} a {pattern[0]} {b.first} and {b.second} background"
    return f"{link} {b.first} and {b.second} {pattern[1]}"
