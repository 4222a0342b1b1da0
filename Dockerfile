# The project with its environment: a node of a cluster, a client, or everything on one machine.
#   docker build -t mnist-pipe .                          # CPU
#   docker build -t mnist-pipe:cuda --build-arg TORCH=cuda .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

ARG TORCH=cpu

# git and make for the Makefile, iproute2 for deploy/, psql for deploy/database.
RUN apt-get update -q \
    && apt-get install -q -y --no-install-recommends git iproute2 make postgresql-client \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 mnist \
    && install -d -o mnist -g mnist /ray # a volume here belongs to mnist: compose.yaml shares Ray's files with Prometheus

USER mnist
WORKDIR /home/mnist/mnist-pipe

# The environment first: a change of the code does not install it again.
COPY --chown=mnist pyproject.toml requirements.lock Makefile README.md ./
RUN mkdir mnist_pipe pipelines studies \
    && make .venv/.run .venv/.cluster TORCH="$TORCH" PIP_NO_CACHE_DIR=1
COPY --chown=mnist . .
# .dockerignore leaves .git out.
RUN for project in . studies; do .venv/bin/dvc --cd $project config --local core.no_scm true; done

ENV PATH=/home/mnist/mnist-pipe/.venv/bin:$PATH
# A node or a head answers for its Ray; a client has none to be asked for.
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s CMD mnist-pipe doctor
CMD ["make", "run"]
