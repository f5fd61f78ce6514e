"""What an operator can set; serve.py makes its options of it."""

from dataclasses import dataclass, field

from dvt.data.decode import Exif
from dvt.value_checks import PATH, bounds, check_fields


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

    max_batch: int = field(default=16, metadata=bounds(1, 4096))
    max_wait_ms: float = field(default=4.0, metadata=bounds(0, 60_000))
    max_pending: int = field(default=64, metadata=bounds(1, 65_536))
    max_bytes: int = field(default=10_000_000, metadata=bounds(1))
    max_pixels: int = field(default=40_000_000, metadata=bounds(1))
    upload_seconds: float = field(default=10.0, metadata=bounds(above=0, most=86_400))
    decoders: int = field(default=2, metadata=bounds(1, 1024))
    decode_seconds: float = field(default=5.0, metadata=bounds(above=0, most=86_400))
    drain_seconds: float = field(default=1.0, metadata=bounds(0, 86_400))

    def __post_init__(self) -> None:
        check_fields(self, "limits.")


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
        audit: Share of the images that leave early, such as 0.02, that are run to the last exit too, after their
            answers and when nothing else is to be done, to see whether the certificates of the bundle hold.
        limits: Limits of the service.
    """

    bundle: str = field(metadata=PATH)
    host: str = "127.0.0.1"
    port: int = field(default=8000, metadata=bounds(1, 65_535))
    backend: str = "onnxruntime"
    threads: int | None = field(default=None, metadata=bounds(1, 1024))
    format: str | None = None
    precision: str = "float32"
    providers: str | None = None
    exif: Exif = "honour"
    audit: float = field(default=0.0, metadata=bounds(0, 1))
    limits: ServiceSettings = field(default_factory=ServiceSettings)
