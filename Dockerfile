FROM python:3.13-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# What is shipped is an environment of its own, without pip; what builds it stays here.
RUN python -m venv --without-pip /opt/polar-agent
COPY deploy/requirements.lock deploy/build.lock deploy/
RUN pip --python /opt/polar-agent/bin/python install -qq --require-hashes -r deploy/requirements.lock \
 && pip install -qq --require-hashes -r deploy/build.lock

COPY pyproject.toml README.md LICENSE ./
COPY agent agent
# The same commit makes the same wheel.
ARG SOURCE_DATE_EPOCH=1577836800
RUN pip wheel -qq --no-build-isolation --no-deps --wheel-dir dist . \
 && pip --python /opt/polar-agent/bin/python install -qq --no-deps dist/*.whl


FROM python:3.13-slim AS base

LABEL org.opencontainers.image.title="polar-agent" \
      org.opencontainers.image.description="Keeps usage events safe on disk and delivers each one to Polar exactly once." \
      org.opencontainers.image.licenses="Apache-2.0"

RUN groupadd --gid 10001 polar-agent \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/polar-agent \
            --shell /usr/sbin/nologin polar-agent \
 && install -d -o polar-agent -g polar-agent -m 0700 /var/lib/polar-agent \
 && install -d -o polar-agent -g polar-agent -m 0755 /run/polar-agent

ENV PATH=/opt/polar-agent/bin:$PATH PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["agent"]


# For development: docker build --target emulator
FROM build AS build-emulator
COPY deploy/emulator.lock deploy/
RUN pip --python /opt/polar-agent/bin/python install -qq --require-hashes -r deploy/emulator.lock

FROM base AS emulator
COPY --from=build-emulator /opt/polar-agent /opt/polar-agent
USER 10001:10001
CMD ["emulator", "--listen", "0.0.0.0:8787"]


# The agent. It writes to its two volumes only, so the root file system can be read-only.
FROM base
COPY --from=build /opt/polar-agent /opt/polar-agent

USER 10001:10001
# The queue, and the socket that producers share. Only the first must outlive the container.
VOLUME ["/var/lib/polar-agent", "/run/polar-agent"]

# Unhealthy: no daemon, or one that can make no event durable.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s --retries=3 \
    CMD ["python", "-m", "agent.probe", "readyz"]

# It drains for up to 8 seconds, within the 10 that `docker stop` gives it.
STOPSIGNAL SIGTERM
CMD ["run"]
