"""What an operator can set; serve.py makes its options of it."""

from dataclasses import dataclass, field

from dvt.data.decode import Exif
from dvt.errors import ConfigError
from dvt.value_checks import PATH


@dataclass(frozen=True)
class ServiceSettings:
    """Limits of the service.

    Args:
        max_batch: Most images that an exit runs on at once.
        max_wait_ms: Longest that an exit which could run waits for a fuller batch, while more images are on their way.
        max_pending: Most requests that are read, decoded or waiting at once; more are answered with 503.
        max_bytes: Largest upload, in bytes.
        max_pixels: Largest image, in pixels, by its header and again after the resize.
        upload_seconds: How long a client may take to send its image.
        decoders: Processes that decode images.
        decode_seconds: How long one image may take to decode.
        drain_seconds: How long after SIGTERM new requests still get a 503, so that a load balancer can look elsewhere.
            Accepted requests are answered however long they take.
    """

    max_batch: int = 16
    max_wait_ms: float = 4.0
    max_pending: int = 64
    max_bytes: int = 10_000_000
    max_pixels: int = 40_000_000
    upload_seconds: float = 10.0
    decoders: int = 2
    decode_seconds: float = 5.0
    drain_seconds: float = 1.0

    def __post_init__(self) -> None:
        for key in ("max_batch", "max_pending", "max_bytes", "max_pixels", "decoders"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be at least 1")
        for key in ("upload_seconds", "decode_seconds"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be above 0")
        for key in ("max_wait_ms", "drain_seconds"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must not be negative")


@dataclass(frozen=True)
class ServeOptions:
    """An exported cascade as an HTTP service.

    Args:
        bundle: Folder that export.py wrote.
        host: Address to listen on; 0.0.0.0 for all.
        port: Port to listen on.
        backend: What runs the bundle: onnxruntime or openvino.
        threads: Threads of the backend; null lets it choose.
        format: Files to run, such as ONNX_INT8; null takes those of the backend.
        precision: float32, or bfloat16 with openvino.
        providers: Execution providers of ONNX Runtime, such as CUDA, with commas in between; null for the CPU.
        exif: honour turns images as their EXIF orientation says; ignore takes them as stored, as ImageNet recipes do.
        limits: Limits of the service.
    """

    bundle: str = field(metadata=PATH)
    host: str = "127.0.0.1"
    port: int = 8000
    backend: str = "onnxruntime"
    threads: int | None = None
    format: str | None = None
    precision: str = "float32"
    providers: str | None = None
    exif: Exif = "honour"
    limits: ServiceSettings = field(default_factory=ServiceSettings)
