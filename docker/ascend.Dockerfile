# Training on Ascend: CANN's official image, MindSpore 2.10, this package.
#
# NOT BUILT OR RUN by the authors: they had no Ascend machine. Image names and tags are those that CANN documents:
# cann:VERSION-CHIP-OS-PYTHON. Take the CANN version that MindSpore's installation guide names for MindSpore 2.10 (for 2.9
# it is 9.0.0) and the chip of your cards (910b for Atlas 800T A2, a3 for Atlas 900 A3, 910 for the first Ascend 910).
#
#   docker build -f docker/ascend.Dockerfile -t dvt-ascend .
#   docker build -f docker/ascend.Dockerfile --build-arg CANN_IMAGE=NAME:TAG -t dvt-ascend .
#
# To start it (the driver stays on the host):
#
#   docker run --rm -it --network=host --shm-size=32g \
#       $(for card in 0 1 2 3 4 5 6 7; do echo --device=/dev/davinci$card; done) \
#       --device=/dev/davinci_manager --device=/dev/devmm_svm --device=/dev/hisi_hdc \
#       -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro -v /usr/local/dcmi:/usr/local/dcmi:ro \
#       -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi:ro -v /etc/ascend_install.info:/etc/ascend_install.info:ro \
#       -v /data/imagenet:/data/imagenet:ro -v /data/runs:/opt/dvt/runs \
#       dvt-ascend bash scripts/run_distribute_train.sh /data/imagenet config/dvt_t2t_vit_12_imagenet.yaml 8
#
# On aarch64 requirements.txt leaves MindSpore out; this image must then get the wheel that
# scripts/setup_env.sh names (RUN python3 -m pip install ADDRESS).
ARG CANN_IMAGE=swr.cn-south-1.myhuaweicloud.com/ascendhub/cann:9.0.0-910b-ubuntu22.04-py3.11
FROM ${CANN_IMAGE}

USER root
# `ip` is what msrun asks whether MASTER_ADDR is this machine; numactl and taskset (util-linux) bind workers to cores.
RUN apt-get update \
    && apt-get install -y --no-install-recommends iproute2 numactl util-linux \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/dvt
# The pinned versions first: they change less often than the sources.
COPY requirements.txt ./
RUN python3 -m pip install --no-cache-dir -r requirements.txt
COPY . .
RUN python3 -m pip install --no-cache-dir --no-deps -e .

# CANN's variables, wherever this version keeps them; then the command.
ENTRYPOINT ["bash", "-c", "for file in /usr/local/Ascend/cann/set_env.sh /usr/local/Ascend/ascend-toolkit/set_env.sh; do if [ -f $file ]; then source $file; break; fi; done; exec \"$@\"", "dvt"]
CMD ["bash", "scripts/run_distribute_train.sh", "-h"]
