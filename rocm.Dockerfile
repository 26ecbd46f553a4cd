# A released ROCm image of sglang with the patches in it. Build it with ci/image/build.py, which
# passes every argument below; by hand, all of them but SLUGS and TILELANG_COMMIT are needed.
#
#   --target layered (default)   the released image's binaries, one layer of a few MB more
#   --target source              sgl-kernel, aiter and TileLang rebuilt from the sources in the image
#
# The patches need no newer binary. Every aiter operator that they call is in v0.1.10.post3 and
# v0.1.11.post1. Our sparse attention uses no feature of TileLang that the images lack;
# nsa_fp8_kv_sparse_mla.py of the overlay says which versions were tested. TileLang changes only if
# TILELANG_COMMIT is set, for example to compare with upstream's own FP8 kernel on 0.5.9:
# a55a82302bf7f3c5af635b5c9146f728185cc900.

# By digest, or the build is refused: lmsysorg/sglang:v0.5.10.post1-rocm720-mi35x@sha256:...
ARG BASE
FROM ${BASE} AS patchset
ARG BASE
ARG BASE_DIGEST
ARG RELEASE
ARG PATCHSET_DIGEST
ARG SLUGS
COPY LICENSE NOTICE README.md apply.py /opt/rocm-patches/
COPY patchset /opt/rocm-patches/patchset
COPY patches /opt/rocm-patches/patches
COPY overlay /opt/rocm-patches/overlay
COPY ci/image /opt/rocm-patches/ci/image
LABEL org.opencontainers.image.title="sglang with ROCm patches" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${RELEASE}" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      org.sglang.rocm-patches.release="${RELEASE}" \
      org.sglang.rocm-patches.digest="${PATCHSET_DIGEST}" \
      org.sglang.rocm-patches.slugs="${SLUGS:-all}"
RUN /opt/rocm-patches/ci/image/pinned.sh "${BASE}" "${BASE_DIGEST}"
WORKDIR /sgl-workspace

FROM patchset AS source
ARG ARCH
ARG RELEASE
ARG PATCHSET_DIGEST
ARG SLUGS
ARG TILELANG_COMMIT
# hadolint ignore=SC2086
RUN /opt/rocm-patches/ci/image/rebuild.sh "${ARCH}" "${RELEASE}" "${PATCHSET_DIGEST}" ${SLUGS}

# The last stage is what is built where no target is named.
FROM patchset AS layered
ARG ARCH
ARG RELEASE
ARG PATCHSET_DIGEST
ARG SLUGS
ARG TILELANG_COMMIT
# hadolint ignore=SC2086
RUN /opt/rocm-patches/ci/image/layer.sh "${ARCH}" "${RELEASE}" "${PATCHSET_DIGEST}" ${SLUGS}
