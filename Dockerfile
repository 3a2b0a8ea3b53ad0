# docker build -t cnnlab .
# docker run --rm -v "$PWD/runs:/workspace/runs" -v "$PWD/data:/workspace/data" cnnlab data=mnist   (--gpus all for CUDA)
FROM python:3.12-slim
WORKDIR /opt/cnnlab
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cnnlab cnnlab
COPY configs configs
COPY hydra_plugins hydra_plugins
RUN pip install --no-cache-dir . -c constraints.txt \
    && useradd --create-home cnnlab \
    && mkdir -p /workspace/runs /workspace/data \
    && chown -R cnnlab /workspace
USER cnnlab
WORKDIR /workspace
ENTRYPOINT ["cnnlab-train"]
