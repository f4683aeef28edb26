"""What an engine's manifest says of the networks that control its U-Net."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ControlNetSpec", "ControlSpec", "FeatureSpec", "IpAdapterSpec", "T2IAdapterSpec", "numbered"]


@dataclass(frozen=True)
class FeatureSpec:
    """A tensor [batch, channels, height/divisor, width/divisor], sides counted in latent pixels."""

    channels: int
    divisor: int


@dataclass(frozen=True)
class ControlNetSpec:
    """A ControlNet (Zhang et al., 2023).

    source          name of the file or folder that it was built from
    image_channels  of its control image
    channels        of its first layer, and of the control image's embedding
    pooled          whether each residual is its mean over the picture, one number per channel, as in the
                    ControlNet for shuffled pictures; guess mode then is always on
    """

    source: str
    image_channels: int
    channels: int
    pooled: bool


@dataclass(frozen=True)
class T2IAdapterSpec:
    """A T2I-Adapter (Mou et al., 2023): what its picture has of channels, and the features it makes of it."""

    source: str
    image_channels: int
    features: tuple[FeatureSpec, ...]


@dataclass(frozen=True)
class IpAdapterSpec:
    """An IP-Adapter (Ye et al., 2023).

    features    shape of what the image encoder gives for one picture: [width] for the embedding of the whole,
                [tokens, width] for the hidden states before its last layer
    tokens      that the U-Net attends to for one picture
    image_size  side of the picture that the engine's image encoder takes, 0 where the engine has none
    """

    source: str
    features: tuple[int, ...]
    tokens: int
    image_size: int


@dataclass(frozen=True)
class ControlSpec:
    """Everything that controls a model's U-Net; nothing for an engine that was built without.

    ``residuals`` are those that ControlNets add: one for each connection from the way down to the way up, in
    the order of the way down, then that of the middle; none without ControlNets.
    """

    residuals: tuple[FeatureSpec, ...] = ()
    controlnets: tuple[ControlNetSpec, ...] = ()
    t2i_adapters: tuple[T2IAdapterSpec, ...] = ()
    ip_adapter: IpAdapterSpec | None = None

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """What T2I-Adapters add, the same for all of them."""
        return self.t2i_adapters[0].features if self.t2i_adapters else ()

    def modules(self) -> tuple[str, ...]:
        """Names of the engine's modules that these are, in the order in which they are built."""
        nets = numbered("controlnet", len(self.controlnets))
        names = [name for net in nets for name in (f"{net}_embedding", net)]
        names += numbered("t2i_adapter", len(self.t2i_adapters))
        if self.ip_adapter is not None:
            names += ["image_encoder"] if self.ip_adapter.image_size else []
            names += ["ip_adapter"]
        return tuple(names)

    def residual_names(self) -> tuple[str, ...]:
        """The U-Net's inputs for ``residuals``."""
        down = tuple(f"down_residual_{index}" for index in range(len(self.residuals) - 1))
        return (*down, "mid_residual") if self.residuals else ()

    def feature_names(self) -> tuple[str, ...]:
        """The U-Net's inputs for ``features``."""
        return tuple(f"adapter_feature_{index}" for index in range(len(self.features)))


def numbered(name: str, count: int) -> list[str]:
    """``name``, ``name_2``, ``name_3`` and so on."""
    return [name if index == 1 else f"{name}_{index}" for index in range(1, count + 1)]
