"""A pretended CUDA device: tensors that say they are on ``cuda:0``, while the values are computed on the CPU.

The real code runs on it with real values, so what depends on them (masks, counts, repairs) runs too, which meta or fake
tensors cannot. As on a GPU, an operation on tensors of both devices fails, and so does a generator of the other one.
Everything that is slow on a GPU is recorded with the line that did it: tensors made on the CPU, copies from and to it,
and questions that wait for the device (``item``, ``nonzero``, indexing by a mask).

What it does not show is speed, CUDA kernels that do not exist, and their rounding; ``autocast`` does nothing on it.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # otherwise imported inside the simulation, at the first operation
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
PACKAGE = str(Path(__file__).parents[2] / "raystitch")
aten = torch.ops.aten
_UNDERNEATH = torch.device("lazy", 0)
"""What torch's C++ takes the device for: one whose streams and guards torch without CUDA does not ask for."""

INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
QUESTIONS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten._unique2.default: "unique",
}


@dataclass(frozen=True)
class Event:
    """Something that costs time on a GPU.

    Attributes:
        kind: ``made on the CPU``, ``copied to the device``, ``copied to the CPU`` or ``waited``.
        what: the operation and the shape. where: the package's line that led to it.
    """

    kind: str
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}, {self.what}"


class PretendedTensor(torch.Tensor):
    """A tensor that says it is on the device; ``held`` are its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "PretendedTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=_UNDERNEATH,
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PretendedTensor({self.held})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        if func == torch.Tensor.device.__get__:  # pyright: ignore[reportAttributeAccessIssue]
            return DEVICE
        if func == torch.Tensor.is_cuda.__get__:  # pyright: ignore[reportAttributeAccessIssue]
            return True
        with torch._C.DisableTorchFunctionSubclass():
            if func == torch.Tensor.data.__set__:  # pyright: ignore[reportAttributeAccessIssue]
                args[0].held = args[1].held
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the simulation")


class PretendedGenerator(torch.Generator):
    """A generator that says it is on the device it was made for."""

    _made_for: torch.device

    def __new__(cls, device: Any = "cpu") -> "PretendedGenerator":
        made = super().__new__(cls)
        made._made_for = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._made_for


class _Functions(TorchFunctionMode):
    """Remembers whose generator is asked: below, its class is lost."""

    def __init__(self, simulation: "Simulation") -> None:
        super().__init__()
        self.simulation = simulation

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.simulation.generator
        asked = (kwargs or {}).get("generator")
        self.simulation.generator = before if asked is None else asked.device
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.simulation.generator = before


class _Operations(TorchDispatchMode):
    def __init__(self, simulation: "Simulation") -> None:
        super().__init__()
        self.simulation = simulation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        pretended = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
        asked = kwargs.get("device")
        on_device = bool(pretended) if asked is None else asked.type in (DEVICE.type, _UNDERNEATH.type)
        self._check(func, args, tensors, pretended, on_device)
        self._note(func, args, tensors, pretended, on_device)
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        values = tree_map(_held, (args, kwargs))
        out = func(*values[0], **values[1])
        if not on_device:
            return out
        same = {id(tensor.held): tensor for tensor in pretended}

        def moved(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return same[id(leaf)] if id(leaf) in same else PretendedTensor(leaf)

        out = tree_map(moved, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if pretended and asked is None else out

    def _check(self, func: Any, args: Any, tensors: list[Any], pretended: list[Any], on_device: bool) -> None:
        """Fail where CUDA would: tensors of both devices, but for numbers and indices, or the other's generator."""
        copies = func in (aten._to_copy.default, aten.copy_.default)
        if pretended and not copies:
            first = args[0] if func in INDEXING else None
            others = [t for t in tensors if not isinstance(t, PretendedTensor) and t.dim() and first is None]
            if others or (first is not None and not isinstance(first, PretendedTensor)):
                shapes = [tuple(tensor.shape) for tensor in others]
                raise RuntimeError(f"{func}: tensors on the CPU {shapes} and on the device together")
        generator = self.simulation.generator
        if generator is not None and (generator.type == "cuda") != on_device and "rand" in str(func):
            raise RuntimeError(f"{func}: the generator is on {generator}")

    def _note(self, func: Any, args: Any, tensors: list[Any], pretended: list[Any], on_device: bool) -> None:
        note = self.simulation.note
        if func is aten._to_copy.default:
            if bool(pretended) != on_device:
                note("copied to the device" if on_device else "copied to the CPU", func, args[0])
        elif func is aten.copy_.default:
            if len(pretended) == 1:
                note("copied to the device" if args[0] is pretended[0] else "copied to the CPU", func, args[1])
        elif pretended:
            if func in QUESTIONS:
                note("waited", func, args[0])
            if func in INDEXING:
                indices = [index for index in args[1] if index is not None]
                if any(index.dtype == torch.bool for index in indices):
                    note("waited", func, args[0])
                for index in indices:
                    if not isinstance(index, PretendedTensor) and index.dim():
                        note("copied to the device", func, index)
        elif not tensors and not on_device:
            note("made on the CPU", func, args[0] if args else None)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, PretendedTensor) else leaf


@dataclass
class Simulation:
    """What has happened on the pretended device since ``begin`` or the start."""

    events: list[Event] = field(default_factory=list[Event])
    generator: torch.device | None = None

    def begin(self) -> None:
        """Forget what has happened, where an inner loop begins."""
        self.events.clear()

    def of(self, *kinds: str) -> list[str]:
        """Return the events of these kinds, each once, as text."""
        return list(dict.fromkeys(str(event) for event in self.events if event.kind in kinds))

    def note(self, kind: str, func: Any, subject: Any) -> None:
        """Record an event; numbers (0 dimensions) that are made on the CPU cost nothing."""
        shape = list(subject.shape) if isinstance(subject, torch.Tensor) else subject
        if kind == "made on the CPU" and not shape:
            return
        self.events.append(Event(kind, f"{func} {shape}", _where()))


def _where() -> str:
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "outside of the package"
    return f"{Path(frame.f_code.co_filename).relative_to(Path(PACKAGE).parent)}:{frame.f_lineno} {frame.f_code.co_name}"


def _enter_inference(self: Any) -> None:
    """Enter ``no_grad`` instead: views of subclasses cannot be made in inference mode."""
    self._without_gradients = torch.no_grad() if self.mode else nullcontext()
    self._without_gradients.__enter__()


def _leave_inference(self: Any, *error: Any) -> None:
    self._without_gradients.__exit__(*error)


@contextmanager
def pretended_cuda() -> Iterator[Simulation]:
    """Pretend that there is one CUDA device inside the block; it is called ``cuda:0``."""
    simulation = Simulation()
    lifts = torch._C._only_lift_cpu_tensors()
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:
        patches = {
            "torch.cuda._lazy_init": lambda: None,
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.is_bf16_supported": lambda including_emulation=True: True,
            "torch.cuda.get_rng_state": lambda device="cuda": torch.zeros(0),
            "torch.cuda.set_rng_state": lambda state, device="cuda": None,
            "torch.cuda.manual_seed_all": lambda seed: None,
            "torch.cuda.empty_cache": lambda: None,
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.Generator": PretendedGenerator,
            "torch.inference_mode.__enter__": _enter_inference,
            "torch.inference_mode.__exit__": _leave_inference,
        }
        for name, value in patches.items():
            stack.enter_context(mock.patch(name, value))
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        stack.enter_context(_Operations(simulation))
        stack.enter_context(_Functions(simulation))
        yield simulation
