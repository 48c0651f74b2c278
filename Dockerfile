# One image for every process; the command picks the process (`packhorse gateway`, `packhorse decode`, ...).
# pip is configured from outside: by the base image's pip.conf, or by the PIP_* build arguments below.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# g++: native CPU kernels, and the launchers that Triton compiles at run time on a GPU.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# A named volume that is mounted over one of these folders starts with its owner and mode.
RUN useradd --create-home --uid 10001 packhorse \
    && install --directory --owner packhorse --group packhorse --mode 0700 /run/packhorse /var/cache/packhorse

ENV VIRTUAL_ENV=/opt/packhorse \
    PATH=/opt/packhorse/bin:$PATH \
    HF_HOME=/var/cache/packhorse \
    PYTHONUNBUFFERED=1
WORKDIR /src

# Dependencies before code: editing the code keeps this layer.
COPY pyproject.toml constraints.txt ./
# Which extras of pyproject.toml go in, by comma.
ARG EXTRAS=ucx
# No default: unset, pip's own configuration holds. A CPU-only wheel index of PyTorch here makes the image several GB smaller.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
RUN python -m venv "$VIRTUAL_ENV" \
    && python -c "import sys, tomllib; \
tree = tomllib.load(open('pyproject.toml', 'rb')); \
extras = tree['project']['optional-dependencies']; \
wanted = [extra for extra in sys.argv[1].split(',') if extra]; \
print(*tree['build-system']['requires'], *tree['project']['dependencies'], *sum((extras[e] for e in wanted), []), sep='\n')" \
        "$EXTRAS" > requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

# `cuda` refuses to build an image whose torch cannot use a GPU.
ARG DEVICE=cpu
RUN test "$DEVICE" = cpu || python -c "import sys, torch; \
sys.exit(None if torch.version.cuda else f'DEVICE=cuda, but pip chose torch {torch.__version__}, which has no CUDA')"

COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && rm -rf build

USER packhorse
WORKDIR /home/packhorse
ENTRYPOINT ["packhorse"]
CMD ["--help"]
