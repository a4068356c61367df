"""X2CT: networks from one radiograph, or two at right angles, to a volume (Ying et al., CVPR 2019).

Written anew from the published numbers: widths, layers, the way the views meet. Each view has a branch: a 2D encoder of
dense blocks, a linear layer that turns its last features into a small volume, and a 3D decoder that meets the encoder's
features again at every resolution, spread along the rays. With two views the branches' features are averaged in the
volume's axes at every resolution; the average goes on in both branches and in a third decoder, which gives the result.

The architecture knows no geometry: it takes for granted that the rays of a lateral view run along x and those of a
frontal view along y. What does not come near that is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

from custom.core.checkpoints import describes_itself
from custom.core.precision import check_precision, mixed_precision
from custom.geometry import VolumeGrid, views_from_angles
from custom.networks.inputs import batched_views
from custom.networks.x2ct_planes import FRONTAL, LATERAL, PLANES, face_picture, ray_deviation_deg, swap_frame

__all__ = ["X2CT", "X2CTDiscriminator"]


def _norm_relu(channels: int, dimensions: int) -> list[nn.Module]:
    """Statistics of the case at hand, at training and afterwards; nothing to learn."""
    norm = nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d
    return [norm(channels), nn.ReLU(inplace=True)]


def _convolution_3d(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv3d(before, after, 3, padding=1), *_norm_relu(after, 3)]


class _DenseStage(nn.Module):
    """Halves the resolution, then a dense block; then half of the channels, or, at the end, one number per channel."""

    def __init__(self, channels: int, layers: int, growth: int, bottleneck: int, last: bool) -> None:
        super().__init__()
        self.down = nn.Sequential(*_norm_relu(channels, 2), nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        self.layers = nn.ModuleList()
        for _ in range(layers):
            squeeze = nn.Conv2d(channels, bottleneck * growth, 1)
            grow = nn.Conv2d(bottleneck * growth, growth, 3, padding=1)
            self.layers.append(
                nn.Sequential(*_norm_relu(channels, 2), squeeze, *_norm_relu(bottleneck * growth, 2), grow)
            )
            channels += growth
        self.out_channels = channels if last else channels // 2
        self.close: nn.Module = nn.AdaptiveAvgPool2d(1)
        if not last:
            self.close = nn.Sequential(*_norm_relu(channels, 2), nn.Conv2d(channels, self.out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.close(x)


class _Link(nn.Module):
    """2D features (B, C, N, N), spread along the rays to (B, C', N, N, N) in the branch's axes."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.flat = nn.Sequential(nn.Conv2d(channels, out_channels, 1), *_norm_relu(out_channels, 2))
        self.deep = nn.Sequential(*_convolution_3d(out_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(self.flat(x).unsqueeze(2).expand(-1, -1, x.shape[-1], -1, -1))


class _Decoder(nn.Module):
    """Levels of a 3D decoder, the finest first: `merge` joins two volumes of one, `body` leads to the next finer."""

    def __init__(self, channels: Sequence[int], repeats: int) -> None:
        super().__init__()
        last = len(channels) - 1
        self.merge = nn.ModuleList(nn.Sequential(*_convolution_3d(2 * c, c)) for c in channels[:-1])
        self.body = nn.ModuleList()
        for level, c in enumerate(channels):
            count = 0 if level == last else 1 if level == 0 else repeats
            layers = [layer for _ in range(count) for layer in _convolution_3d(c, c)]
            if level:
                finer = channels[level - 1]
                layers += [nn.ConvTranspose3d(c, finer, 3, 2, padding=1, output_padding=1), *_norm_relu(finer, 3)]
            self.body.append(nn.Sequential(*layers))
        self.head = nn.Conv3d(channels[0], 1, 7, padding=3)


class _Branch(nn.Module):
    """Encoder and decoder of one view."""

    def __init__(
        self,
        side: int,
        stem_channels: int,
        dense_layers: Sequence[int],
        growth: int,
        bottleneck: int,
        decoder_channels: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.side = side
        self.stem = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(1, stem_channels, 7), *_norm_relu(stem_channels, 2))
        self.stages, self.links = nn.ModuleList(), nn.ModuleList()
        channels = stem_channels
        for index, layers in enumerate(dense_layers):
            self.links.append(_Link(channels, decoder_channels[index]))
            stage = _DenseStage(channels, layers, growth, bottleneck, last=index == len(dense_layers) - 1)
            self.stages.append(stage)
            channels = stage.out_channels
        deepest = decoder_channels[-1]
        self.start = nn.Sequential(nn.Linear(channels, deepest * side**3), nn.Dropout(dropout), nn.ReLU(inplace=True))
        self.decoder = _Decoder(decoder_channels, repeats=2)

    def encode(self, picture: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Picture (B, 1, N, N) to the small volume that decoding starts from, and the 2D features, the finest first."""
        features = [self.stem(picture)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        volume = self.start(features.pop().flatten(1))
        return volume.unflatten(1, (-1, self.side, self.side, self.side)), features

    def merge(self, level: int, volume: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Meet the encoder's features of a level; at the coarsest there are none."""
        if level == len(features):
            return volume
        return self.decoder.merge[level](torch.cat([volume, self.links[level](features[level])], 1))

    def forward(self, picture: Tensor) -> Tensor:
        volume, features = self.encode(picture)
        for level in reversed(range(len(features) + 1)):
            volume = self.decoder.body[level](self.merge(level, volume, features))
        return self.decoder.head(volume)


@describes_itself
class X2CT(nn.Module):
    """One radiograph, or a lateral and a frontal one, to a CT.

    With its defaults the published generator at 128^3: 61,740,467 parameters for two views, 29,384,481 for one. As
    published, the branches of the network for two views keep a last convolution and an output layer of their own, which
    nothing reads (12,417 parameters each).

    A network for one view takes a lateral or a frontal one, whichever comes.

    Args:
        grid: the cube that is reconstructed, N^3 voxels; N / 2^stages is the side of the volume that decoding starts
            from, 4 in the published network.
        view_count: 1 or 2 radiographs. No more: the architecture has no place for them.
        views: (K, 13) for `forward(image)` without views; None: views must be passed.
        angle_tolerance_deg: the largest angle between any ray through the grid and the axis that it stands for. A cone
            beam from 1000 mm needs about 15 for a cube of 320 mm, and a training with such radiographs.
        dense_layers: layers of the encoder's stages, each of which halves the resolution.
        decoder_channels: widths of the decoders, the finest first; one more than there are stages.
        stem_channels, growth, bottleneck: widths of the encoder.
        dropout: of the linear layer between encoder and decoder.
        initial_std: standard deviation of the weights at the start.
        training_slope: of the output's rectifier below zero, in training mode only. 0 is the published ReLU, which can
            die: from where every voxel is air no gradient leads back.
        radiograph_scale: line integrals are multiplied by it, a constant; the normalisation that follows hides it from
            the network, but not from the discriminator.
        energy_kev: photon energy of the line integrals.
        hu_window: CT values that become -1 and 1.
        precision: of all layers, "bf16", "fp32" or "auto"; pictures are always resampled in float32.

    Raises:
        ValueError: for other numbers of views, or a grid that is no cube or cannot be halved so often.
    """

    views: Tensor | None

    def __init__(
        self,
        grid: VolumeGrid,
        view_count: int = 2,
        views: Tensor | Sequence[Sequence[float]] | None = None,
        angle_tolerance_deg: float = 5.0,
        dense_layers: Sequence[int] = (6, 12, 24, 16, 6),
        decoder_channels: Sequence[int] = (16, 16, 32, 64, 128, 256),
        stem_channels: int = 64,
        growth: int = 32,
        bottleneck: int = 4,
        dropout: float = 0.5,
        initial_std: float = 0.02,
        training_slope: float = 0.0,
        radiograph_scale: float = 0.2,
        energy_kev: float = 70.0,
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        precision: str = "auto",
    ) -> None:
        super().__init__()
        if view_count not in (1, 2):
            raise ValueError(f"X2CT is a network for 1 or 2 views, got view_count {view_count}")
        if len(decoder_channels) != len(dense_layers) + 1:
            raise ValueError(
                f"decoder_channels must be one more than the {len(dense_layers)} stages of dense_layers, got "
                f"{list(decoder_channels)}"
            )
        factor = 2 ** len(dense_layers)
        size = grid.shape[0]
        if len(set(grid.shape)) > 1 or size % factor or size < 2 * factor:
            raise ValueError(
                f"X2CT of {len(dense_layers)} stages needs a cube with a side that is a multiple of {factor}, at least "
                f"{2 * factor} voxels, got {grid.shape}: change dense_layers and decoder_channels (see the preset "
                "grid_64), or the grid"
            )
        self.grid, self.view_count, self.angle_tolerance_deg = grid, view_count, float(angle_tolerance_deg)
        self.training_slope, self.radiograph_scale, self.energy_kev = training_slope, radiograph_scale, energy_kev
        self.hu_window = (float(hu_window[0]), float(hu_window[1]))
        self.precision = check_precision(precision)
        fixed = None if views is None else torch.as_tensor(views, dtype=torch.float32)
        self.register_buffer("views", fixed, persistent=False)
        widths = (stem_channels, dense_layers, growth, bottleneck, decoder_channels, dropout)
        self.branches = nn.ModuleList(_Branch(size // factor, *widths) for _ in range(view_count))
        self.decoder = _Decoder(decoder_channels, repeats=1) if view_count == 2 else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
                nn.init.normal_(module.weight, std=initial_std)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor, views: Tensor | None = None, view_mask: Tensor | None = None) -> Tensor:
        """Reconstruct.

        Args:
            image: line integrals (B, K, V, U).
            views: (B, K, 13) or (K, 13), in any order; None for the views given at construction.
            view_mask: bool (B, K), False for padding; None: every view counts.

        Returns:
            (B, 1, X, Y, Z) on `grid`, `hu_window` as [-1, 1]; in evaluation mode never below -1.

        Raises:
            ValueError: if image, views and mask do not match, or the views are not the one, or the lateral and the
                frontal one, that this network is for.
        """
        pictures, planes = self._pictures(image, views, view_mask)
        with mixed_precision(self.precision, image.device):
            if self.decoder is None:
                volume = self._to_volume(self.branches[0](pictures[0]), planes)
            else:
                volume = self._fuse(self.decoder, pictures)
        return F.leaky_relu(volume.float(), self.training_slope if self.training else 0.0) * 2 - 1

    def expanded(self, image: Tensor, views: Tensor | None = None, view_mask: Tensor | None = None) -> Tensor:
        """The radiographs, spread along their rays over the grid: what the discriminator sees beside a CT.

        Args:
            image, views, view_mask: as in `forward`.

        Returns:
            (B, view_count, X, Y, Z), times `radiograph_scale`: the lateral view first.
        """
        pictures, planes = self._pictures(image, views, view_mask)
        side = self.grid.shape[0]
        deep = [picture.unsqueeze(2).expand(-1, -1, side, -1, -1) for picture in pictures]
        if self.view_count == 1:
            return self._to_volume(deep[0], planes)
        return torch.cat([swap_frame(volume, plane) for plane, volume in enumerate(deep)], 1)

    def require_angles(self, angles_deg: Sequence[float]) -> None:
        """Raise ValueError, as `forward` would, unless parallel views at these angles are what this network is for."""
        self._choose(views_from_angles(angles_deg, "parallel")[None], None)

    def _fuse(self, decoder: _Decoder, pictures: Sequence[Tensor]) -> Tensor:
        """The third decoder's volume, from branches that go on with their average at every level."""
        branches = cast(list[_Branch], list(self.branches))
        volumes, features = zip(*(b.encode(p) for b, p in zip(branches, pictures, strict=True)), strict=True)
        fused: Tensor | None = None
        for level in reversed(range(len(decoder.body))):
            own = [b.merge(level, v, f) for b, v, f in zip(branches, volumes, features, strict=True)]
            mean = (own[LATERAL] + swap_frame(own[FRONTAL], FRONTAL)) / 2
            fused = mean if fused is None else decoder.merge[level](torch.cat([mean, fused], 1))
            fused = decoder.body[level](fused)
            if level:
                volumes = tuple(b.decoder.body[level](swap_frame(mean, plane)) for plane, b in enumerate(branches))
        return decoder.head(fused)

    @staticmethod
    def _to_volume(deep: Tensor, planes: Sequence[int]) -> Tensor:
        return torch.cat([swap_frame(case[None], plane) for case, plane in zip(deep, planes, strict=True)])

    def _pictures(
        self, image: Tensor, views: Tensor | None, view_mask: Tensor | None
    ) -> tuple[list[Tensor], list[int]]:
        """For every branch the scaled pictures (B, 1, N, N), and the plane of each case's first view."""
        views = batched_views(image, self.views if views is None else views, view_mask)
        chosen = self._choose(views, view_mask)
        views = views.to(image.device)
        pictures = []
        for branch in range(self.view_count):
            cases = [
                face_picture(image[b : b + 1, k], views[b : b + 1, k], self.grid, plane)
                for b, (k, plane) in enumerate(case[branch] for case in chosen)
            ]
            pictures.append(torch.cat(cases) * self.radiograph_scale)
        return pictures, [case[0][1] for case in chosen]

    def _choose(self, views: Tensor, view_mask: Tensor | None) -> list[list[tuple[int, int]]]:
        """For every case (index, plane) of its views, one for each branch, the lateral before the frontal one."""
        deviations = ray_deviation_deg(views, self.grid).tolist()
        kept = torch.ones(views.shape[:2], dtype=torch.bool) if view_mask is None else view_mask.cpu()
        cases = []
        for b, case in enumerate(deviations):
            indices = kept[b].nonzero().flatten().tolist()
            if len(indices) != self.view_count:
                wanted = "a lateral and a frontal one" if self.view_count == 2 else "a lateral or a frontal one"
                raise ValueError(
                    f"this X2CT network is for {self.view_count} radiograph(s), {wanted}, got {len(indices)}: choose "
                    "them by angle (angles_deg or val_angles_deg, such as [0, 90]), or train the network for another "
                    "number; X2CT has an architecture for one and for two views, not for more"
                )
            planes = [LATERAL if case[k][LATERAL] <= case[k][FRONTAL] else FRONTAL for k in indices]
            for k, plane in zip(indices, planes, strict=True):
                if not case[k][plane] <= self.angle_tolerance_deg:
                    raise ValueError(
                        f"X2CT takes lateral and frontal views with parallel rays, within {self.angle_tolerance_deg:g} "
                        f"degrees (angle_tolerance_deg): rays of view {k + 1} of case {b + 1} run up to "
                        f"{case[k][plane]:.1f} degrees off the {PLANES[plane]} ones; take views at 0 and 90 degrees"
                    )
            if sorted(planes) != sorted(set(planes)):
                raise ValueError(f"X2CT takes a lateral and a frontal view, got two {PLANES[planes[0]]} ones")
            cases.append(sorted(zip(indices, planes, strict=True), key=lambda view: view[1]))
        return cases


class X2CTDiscriminator(nn.Module):
    """Judges patches of a CT beside the radiographs, spread along their rays: a 3D PatchGAN (MONAI's).

    With its defaults and two views the published one, 11,055,169 parameters.

    Args:
        view_count: 1 or 2.
        channels: of the first layer.
        layers: between the first and the last.
        precision: "auto", "bf16" or "fp32".
    """

    def __init__(self, view_count: int = 2, channels: int = 64, layers: int = 3, precision: str = "auto") -> None:
        super().__init__()
        self.network = PatchDiscriminator(3, channels, view_count + 1, num_layers_d=layers, norm="INSTANCE")
        self.view_count, self.precision = view_count, check_precision(precision)

    def forward(self, volume: Tensor, expanded: Tensor) -> Tensor:
        """Logits (B, 1, X', Y', Z').

        Args:
            volume: (B, 1, X, Y, Z) in [0, 1].
            expanded: (B, view_count, X, Y, Z), of `X2CT.expanded`.

        Raises:
            ValueError: if they are too small for the layers, or of another number of views.
        """
        if min(volume.shape[2:]) >> self.network.num_layers_d < 3:
            raise ValueError(
                f"a discriminator of {self.network.num_layers_d} layers cannot judge {tuple(volume.shape[2:])} voxels: "
                "use fewer layers (disc_layers), or a larger grid"
            )
        if expanded.shape[1] != self.view_count:
            raise ValueError(f"a discriminator beside {self.view_count} view(s), got {expanded.shape[1]}")
        joint = torch.cat([expanded, volume], 1)
        with mixed_precision(self.precision, volume.device):
            return self.network(joint)[-1].float()
