"""The part of the build that pyproject.toml cannot state: a wheel that carries compiled kernels, for `make wheel`.

Without FXPTQ_WHEEL_KERNELS=1 in the environment the wheel is pure Python, needs no compiler and no torch to build, and
its kernels are compiled at their first use.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

CARRIED = Path("fxptq", "kernels", "lib")


class BuildWithKernels(build_py):
    """Compiles the kernels beside the copied modules."""

    def run(self) -> None:
        """Copies, then compiles."""
        super().run()
        sys.path.insert(0, str(Path(__file__).parent))
        from fxptq.kernels import shipped  # noqa: PLC0415  # needs torch, as no other wheel does

        shipped.make(Path(self.build_lib) / CARRIED)


class Compiled(Distribution):
    """A distribution for one platform."""

    def has_ext_modules(self) -> bool:
        """Whether it is for one platform only."""
        return True


class WheelWithKernels(bdist_wheel):
    """Names the wheel after the machines that its kernels run on, and no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """The tags for Python, its ABI and the platform."""
        from fxptq.kernels import shipped  # noqa: PLC0415

        built = Path(self.get_finalized_command("build").build_lib) / CARRIED
        return "py3", "none", shipped.platform_tag(sorted(built.glob("*.so")))


if os.environ.get("FXPTQ_WHEEL_KERNELS") == "1":
    # A folder of its own: no later wheel without kernels can take them along.
    setup(
        distclass=Compiled,
        cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelWithKernels},
        options={"build": {"build_base": "build/wheel"}},
    )
else:
    setup()
