# One image for `gymcast serve`. docs/deployment.md says how to run it, and what has been checked of it.
FROM python:3.11-slim AS build
RUN python -m venv /opt/gymcast
ENV PATH=/opt/gymcast/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /src
# torch first: by far the largest part, and it changes least. Its CPU build, in the version of constraints.txt.
COPY constraints.txt ./
RUN pip install -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY envs envs
COPY training training
COPY server server
RUN pip install -c constraints.txt ".[postgres,redis]"

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home --home-dir /var/lib/gymcast --shell /usr/sbin/nologin gymcast
COPY --from=build /opt/gymcast /opt/gymcast
ENV PATH=/opt/gymcast/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/var/lib/gymcast/numba \
    GYMCAST_RUNS=/var/lib/gymcast/runs \
    GYMCAST_ENABLE_AUTH=true \
    TRAINING_METRICS_HOST=0.0.0.0 \
    TRAINING_METRICS_PORT=8000 \
    TRAINING_METRICS_LOG_FORMAT=json
USER gymcast
WORKDIR /var/lib/gymcast
VOLUME /var/lib/gymcast
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
CMD ["gymcast", "serve"]
