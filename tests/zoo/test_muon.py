import pytest
import torch
from torch import nn

from fastdiff.zoo.training.muon import Muon, orthogonalised


# Wide, tall, square; 33 and 7 are no multiples of any vector; 1 row is a matrix that is one direction.
@pytest.mark.parametrize("shape", [(3, 33, 7), (2, 7, 33), (1, 16, 16), (2, 1, 40)])
def test_singular_values_are_near_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrices).float()
    assert found.shape == matrices.shape
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.diagonal(u.mT @ found @ v.mT, dim1=1, dim2=2)
    assert values.min() > 0.6
    assert values.max() < 1.3
    rest = found - u @ torch.diag_embed(values) @ v
    assert rest.norm() < 0.05 * found.norm()


def test_a_badly_scaled_problem_is_solved_in_few_steps() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(8, 8, 3, 3)
    scales = torch.logspace(0, -1, 8).view(1, 8, 1, 1)
    layer = nn.Conv2d(8, 8, 3, bias=False)
    optimiser = Muon([layer.weight], lr=0.3, weight_decay=0.0)
    first = float((layer.weight.detach() - wanted).norm())
    for step in range(100):
        optimiser.param_groups[0]["lr"] = 0.3 * (1 - step / 100)
        optimiser.zero_grad()
        ((layer.weight - wanted) * scales).square().sum().backward()
        optimiser.step()
    # In the flattest direction gradient descent would move a hundred times slower than in the steepest.
    assert float((layer.weight.detach() - wanted).norm()) < 0.2 * first
