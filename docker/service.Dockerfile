# The example service (docs/service.md) with a bundle that is mounted at /bundle: ONNX Runtime, no MindSpore, not root.
#
#   dvt export CHECKPOINT --format ONNX --output BUNDLE
#   docker build -f docker/service.Dockerfile -t dvt-service .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -v "$PWD/BUNDLE:/bundle:ro" dvt-service
#
# What stands after the name of the image are options of examples/serve.py; those of CMD must then be repeated, and the
# health check asks for 127.0.0.1:
#
#   docker run ... dvt-service /bundle --host 0.0.0.0 --allowed_hosts my.host 127.0.0.1 --limits.max_pending 256
#
# Its commands are tested without Docker (tests/examples/test_dockerfile.py); the authors had none to build it with.
FROM python:3.11-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

WORKDIR /opt/dvt
# The pinned versions first: they change less often than the sources.
COPY requirements.txt requirements-serve.txt ./
RUN python -m pip install --no-cache-dir -r requirements-serve.txt numpy Pillow PyYAML tqdm onnxruntime -c requirements.txt
COPY src ./src
COPY examples ./examples

RUN useradd --create-home --uid 10001 dvt
USER dvt

EXPOSE 8000
# 503 while it shuts down. The port is that of CMD.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["python", "examples/serve.py"]
CMD ["/bundle", "--host", "0.0.0.0", "--port", "8000"]
