"""Study of a round's cost beside its bare gradient steps, here and in other libraries.

``python -m fedvtc_edge.benchmarks.studies peers --clients 10 --epochs 20 --rounds 10 --json``

The same work everywhere: so many LeNet clients share the built-in digits evenly and take so
many epochs a round with Adam, one thread each. A side is all that its library does in a round:

* **local**: ``method.name = "local"``: training, records, a checkpoint on disk after each round.
* **statistics**: ``method.name = "fedproto"``: each client pulls its features to the prototypes,
  measures class sums and seals them; the server checks, adds and publishes; ledger and all.
* **pfl**: pfl-research's federated averaging in its simulated backend.
* **flower**: Flower's federated averaging in its simulation on Ray.

Nobody evaluates, and nobody trains a baseline. The floor is a bare torch loop over the same
batches; that of **statistics** has the pull, too. It takes its turn after every round of a side,
in the same process, so that a busy machine slows both; figures are CPU time, medians of rounds.
Of Flower, whose clients train in processes of Ray, it is the time of the whole process tree over
``rounds`` rounds more, by difference. A library that is not installed is skipped with a reason;
HtFLlib is no package that could be.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvtc_edge.config import Config, load_config
from fedvtc_edge.data import load_data
from fedvtc_edge.models import Classifier, ImageShape, build
from fedvtc_edge.progress import SilentProgress
from fedvtc_edge.training.compute import as_images
from fedvtc_edge.workflows.run import run

from .engines import tree_cost
from .runner import Document, Study, paired, positive, table

_START = 2
"""Rounds that do not count: the second is the first in which there are prototypes."""

_ARCHITECTURE, _WIDTH, _RATE, _BATCH = "lenet", 64, 1e-3, 32
_RUN = (
    "import sys; from fedvtc_edge.benchmarks.studies.peers import alternate;"
    "alternate(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])"
)

PEERS = {"pfl": "pfl", "flower": "flwr"}
"""Sides that need a package, and its name."""

EndOfRound = Callable[[], None]


def measure(clients: int, epochs: int, rounds: int, repeats: int) -> Document:
    """CPU seconds of a round of every side that is installed, of its floor, and their ratio."""
    skipped = {
        side: f"{package} is not installed"
        for side, package in PEERS.items()
        if find_spec(package) is None
    }
    skipped["htfllib"] = "HtFLlib is not on PyPI and no package"
    found = paired(
        {
            side: functools.partial(_cost, side, clients, epochs, rounds)
            for side in SIDES
            if side not in skipped
        },
        repeats,
    )
    return {
        "schema": 1,
        "clients": clients,
        "steps": _steps(clients, epochs),
        "rounds": rounds,
        "repeats": repeats,
        "sides": {
            side: {
                "cpu_s_per_round": round(statistics.median(one for one, _ in costs), 4),
                "bare_cpu_s_per_round": round(statistics.median(bare for _, bare in costs), 4),
                "ratio": round(statistics.median(one / bare for one, bare in costs), 3),
            }
            for side, costs in found.items()
        },
        "skipped": skipped,
    }


def _cost(side: str, clients: int, epochs: int, rounds: int) -> tuple[float, float]:
    """CPU seconds of a round of a side and of its floor."""
    if side != "flower":
        _, turns = _process(side, clients, epochs, _START + rounds)
        halves = (turns[kind][_START:] for kind in ("side", "floor"))
        one, bare = (statistics.median(half) for half in halves)
        return one, bare
    spent = [_process(side, clients, epochs, number) for number in (_START, _START + rounds)]
    # All processes, less the floors that this one ran in between.
    whole = [seconds - sum(turns["floor"]) for seconds, turns in spent]
    return (whole[1] - whole[0]) / rounds, statistics.median(spent[1][1]["floor"])


def _process(
    side: str, clients: int, epochs: int, rounds: int
) -> tuple[float, dict[str, list[float]]]:
    """CPU seconds of a new process and all below it, and those of its turns."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "turns.json"
        words = [side, str(clients), str(epochs), str(rounds), str(file)]
        seconds = tree_cost([sys.executable, "-c", _RUN, *words])["cpu_s"]
        turns: dict[str, list[float]] = json.loads(file.read_text("ascii"))
        return seconds, turns


def alternate(side: str, clients: int, epochs: int, rounds: int, file: str) -> None:
    """Run a side, its floor after each of its rounds, and write CPU seconds of both."""
    turns: dict[str, list[float]] = {"side": [], "floor": []}
    floor = Floor(clients, epochs, pull=side == "statistics")
    begin = time.process_time()

    def turn() -> None:
        nonlocal begin
        middle = time.process_time()
        floor.round()
        end = time.process_time()
        turns["side"].append(middle - begin)
        turns["floor"].append(end - middle)
        begin = end

    SIDES[side](clients, epochs, rounds, turn)
    Path(file).write_text(json.dumps(turns), "ascii")


# ---------------------------------------------------------------- the work


def settings(method: str, clients: int, epochs: int, rounds: int) -> Config:
    """Settings of our sides; fine-tuning and decoder steps, which are no work here, are least."""
    return load_config(
        {
            "data": {"partition": "iid"},
            "clients": {"count": clients, "architectures": [_ARCHITECTURE]},
            "method": {"name": method, "rounds": rounds, "latent": _WIDTH, "baseline": False},
            "training": {
                **{"epochs": epochs, "batch": _BATCH, "rate": _RATE, "decoder_steps": 1},
                **{"finetune_from": 100_000, "finetune_last": 0},
            },
            "engine": {"device": "cpu", "evaluate_every": 100_000},
        }
    )


@functools.cache
def parts(clients: int) -> list[tuple[Tensor, Tensor]]:
    """Images [n, 1, 8, 8] and labels [n] of each client, dealt out evenly."""
    data = load_data(load_config({}))
    images = as_images(data.x_train, torch.device("cpu"))
    labels = torch.from_numpy(data.y_train.copy())
    return [(images[place::clients], labels[place::clients]) for place in range(clients)]


def network() -> Classifier:
    """The network that every client trains."""
    return build(_ARCHITECTURE, ImageShape(8, 1), classes=10, latent=_WIDTH, seed=0)


def _steps(clients: int, epochs: int) -> int:
    return epochs * -(-len(parts(clients)[0][1]) // _BATCH)


# ---------------------------------------------------------------- sides


class Floor:
    """The loop that one would write by hand, one round at a time.

    Args:
        pull: Toward given prototypes; the method that does it draws its batches with replacement,
            and takes the decoder's one step, too.
    """

    def __init__(self, clients: int, epochs: int, *, pull: bool) -> None:
        self._parts, self._epochs = parts(clients), epochs
        self._models = [network() for _ in range(clients)]
        self._prototypes = torch.zeros(10, _WIDTH) if pull else None
        self._steps = _steps(clients, epochs) + 1

    def round(self) -> None:
        """Steps of every client."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for model, (images, labels) in zip(self._models, self._parts, strict=True):
            batches = _batches(len(labels), self._epochs)
            if self._prototypes is not None:
                sizes = [(min(_BATCH, len(labels)),)] * self._steps
                batches = (torch.randint(len(labels), size) for size in sizes)
            fit(model, images, labels, batches, self._prototypes)
        torch.set_num_threads(threads)


def fit(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    batches: Iterable[Tensor],
    prototypes: Tensor | None = None,
) -> None:
    """Take bare steps of one client in one round, as anybody would write them.

    Args:
        batches: Indices of images, one tensor for each step.
        prototypes: Means [C, p] that features are pulled to, or None.
    """
    model.train()
    adam = torch.optim.Adam(model.parameters(), lr=_RATE, fused=True)
    for batch in batches:
        x, y = images[batch], labels[batch]
        z = model.features(x + 0.2 * torch.randn(x.shape))
        loss = F.cross_entropy(model.head(z), y)
        if prototypes is not None:
            loss = loss + (z - prototypes[y]).square().mean()
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()


def _batches(size: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.split(torch.randperm(size), _BATCH)


def _ours(method: str, clients: int, epochs: int, rounds: int, turn: EndOfRound) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(
            settings(method, clients, epochs, rounds),
            out=Path(folder) / "run",
            progress=SilentProgress(),
            callbacks=[lambda _: turn()],
        )


def _pfl(clients: int, epochs: int, rounds: int, turn: EndOfRound) -> None:
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    class Trained(nn.Module):
        """The network with the two methods that pfl asks for."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            self.train()
            return F.cross_entropy(self.network(x + 0.2 * torch.randn(x.shape)), y)

        def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
            return {"images": Weighted(len(x), len(x))}

    class Turn(TrainingProcessCallback):  # type: ignore[misc]
        """End of a round."""

        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
            turn()
            return False, Metrics()

    torch.set_num_threads(1)
    data = FederatedDataset(
        lambda user: Dataset(raw_data=parts(clients)[user], user_id=str(user)),
        get_user_sampler("minimize_reuse", list(range(clients))),
    )
    module = Trained()
    model = PyTorchModel(
        module,
        local_optimizer_create=functools.partial(torch.optim.Adam, fused=True),
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=100_000,
            train_cohort_size=clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=None),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=epochs, local_learning_rate=_RATE, local_batch_size=_BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Turn()],
    )


def _flower(clients: int, epochs: int, rounds: int, turn: EndOfRound) -> None:
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        model = network()
        arrays = message.content.array_records["arrays"]
        model.load_state_dict(arrays.to_torch_state_dict())
        images, labels = parts(clients)[int(context.node_config["partition-id"])]
        torch.set_num_threads(1)
        fit(model, images, labels, _batches(len(labels), epochs))
        content = RecordDict()
        content["arrays"] = ArrayRecord(model.state_dict())
        content["metrics"] = MetricRecord({"num-examples": len(labels)})
        return Message(content=content, reply_to=message)

    @server.main()
    def lead(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=clients)

        def ended(number: int, _: ArrayRecord) -> None:
            if number:  # 0 is before the first
                turn()

        first = ArrayRecord(network().state_dict())
        strategy.start(grid, first, num_rounds=rounds, evaluate_fn=ended)

    resources: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, num_supernodes=clients, backend_config=resources)


SIDES: dict[str, Callable[[int, int, int, EndOfRound], None]] = {
    "local": functools.partial(_ours, "local"),
    "statistics": functools.partial(_ours, "fedproto"),
    "pfl": _pfl,
    "flower": _flower,
}
"""Sides by name: called with clients, epochs, rounds, and what to call after each round."""


# ---------------------------------------------------------------- command line


def _lines(found: Document) -> Iterator[str]:
    yield (
        f"{found['clients']} clients, {found['steps']} steps a round each; CPU of "
        f"{found['rounds']} rounds, median of {found['repeats']}"
    )
    rows = [
        (side, *(f"{one[key]:.3f}" for key in ("cpu_s_per_round", "bare_cpu_s_per_round", "ratio")))
        for side, one in found["sides"].items()
    ]
    yield from table(("side", "s a round", "bare steps", "ratio"), rows)
    yield from (f"{side}: skipped: {reason}" for side, reason in found["skipped"].items())


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=positive, default=10)
    parser.add_argument("--epochs", type=positive, default=20, help="per round")
    parser.add_argument("--rounds", type=positive, default=10)


STUDY = Study("peers", __doc__, _options, measure, _lines, repeats=3)


if __name__ == "__main__":
    STUDY.main()
