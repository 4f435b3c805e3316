# The service in an image: `make image` builds and tries it, docs/deploying.md says how to run it.
#
# Debian's own Python 3.11, the version that the tests run on; it gets Debian's security updates when the image is rebuilt.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
ARG UV_VERSION=0.13.9
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV UV_PROJECT_ENVIRONMENT=/opt/mkf \
    UV_PYTHON=/usr/bin/python3 \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
# Behind a proxy with a certificate of its own: --secret id=ca,src=FILE. It stays out of the image.
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
    && python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir "uv==${UV_VERSION}"
WORKDIR /src
# The dependencies first: they change seldom, and their layer is kept while only the service changes.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
    && /opt/uv/bin/uv sync --locked --no-default-groups --all-extras --no-install-project
COPY migrations migrations
COPY server server
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
    && /opt/uv/bin/uv sync --locked --no-default-groups --all-extras --no-editable

FROM ${BASE}
# ca-certificates: brokers with certificates of public authorities.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/* \
    && install --directory --owner=10001 --group=10001 --mode=0750 /data \
    && install --directory /forwarding-service
COPY --from=build /opt/mkf /opt/mkf
# The folder and the name are where the Rust service had them, so its `docker run -v` still works. Nothing is written
# but below /data, so the root may be read-only.
ENV PATH=/opt/mkf/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CONFIG_FILE=/forwarding-service/config.yaml \
    MKF_DATABASE_URL=sqlite:////data/mkf.db \
    MKF_HOST=0.0.0.0 \
    MKF_LOG_FORMAT=json \
    MKF_PORT=8080
WORKDIR /forwarding-service
VOLUME ["/data"]
# A number, so that Kubernetes can check runAsNonRoot.
USER 10001:10001
EXPOSE 8080
# SIGTERM drains; the longest drain and the farewells take 25 s: docker stop --time 45.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import os, ssl, urllib.request as web; tls = os.environ.get('MKF_TLS_CERT'); web.urlopen(f'http{\"s\" if tls else \"\"}://127.0.0.1:{os.environ[\"MKF_PORT\"]}/livez', timeout=4, context=ssl._create_unverified_context() if tls else None)"]
# Last, for they change with every commit.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mqtt-kafka-forwarder" \
      org.opencontainers.image.description="Forwards MQTT messages to Kafka: at least once, in order, managed while it runs." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["mkf"]
CMD ["serve"]
