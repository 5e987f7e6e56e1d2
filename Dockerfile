# noisescope on a CPU.
#   docker build -t noisescope .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" noisescope score pairs.jsonl --model ./model
# HOME is writable for any user id; mount a cache for models of the Hub:
#   -v "$HOME/.cache/huggingface:/home/noisescope/.cache/huggingface"
# On Linux the default build of torch carries CUDA; TORCH_INDEX names an index with a CPU build:
#   docker build -t noisescope --build-arg TORCH_INDEX=https://... .
# For NVIDIA GPUs: Dockerfile.cuda.
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG TORCH_INDEX=
COPY constraints.txt /constraints.txt
COPY --from=build /wheels /wheels
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' /constraints.txt)"; \
    fi \
 && pip install --no-cache-dir --constraint /constraints.txt /wheels/*.whl \
 && rm -r /wheels \
 && useradd --create-home --uid 1000 noisescope \
 && mkdir -p /home/noisescope/.cache/huggingface && chmod -R 0777 /home/noisescope
ENV HOME=/home/noisescope
USER 1000
WORKDIR /work
ENTRYPOINT ["noisescope"]
CMD ["--help"]
