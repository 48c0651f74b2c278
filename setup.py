"""The native kernels as an extension that may fail: without g++ the install goes on, and torch kernels serve. All else: pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import Extension, setup

root = Path(__file__).parent
build = runpy.run_path(str(root / "hack_kernels" / "cpu" / "build.py"))


def relative(paths: list[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


setup(
    ext_modules=[
        Extension(
            "hack_kernels.cpu._native",
            sources=relative(build["sources"]()),
            depends=relative(build["headers"]()),
            extra_compile_args=build["flags"](),
            extra_link_args=list(build["LINK_FLAGS"]),
            language="c++",
            optional=True,
        )
    ],
)
