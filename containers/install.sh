#!/bin/sh
# The steps of the Dockerfile beside this file that install something: uv, an environment's packages, the project.
#
#   sh install.sh uv | packages NAME | project
#
# The last one writes /opt/martlet/.content: one digest of all that is in the image, which every manifest holds.
set -eu
secrets=/run/secrets
export UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_CACHE_DIR=/root/.cache/uv HOME=/root
if test -e $secrets/ca; then export PIP_CERT=$secrets/ca SSL_CERT_FILE=$secrets/ca; fi
if test -e $secrets/pip.conf; then export PIP_CONFIG_FILE=$secrets/pip.conf; fi
if test -e $secrets/uv.toml; then export UV_CONFIG_FILE=$secrets/uv.toml; fi

install_uv() {
  python3 -m venv /opt/uv
  /opt/uv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check uv==0.13.9
}

install_packages() {
  environment=/opt/environments/$1
  /opt/uv/bin/uv venv --quiet --python "$(command -v python3)" "$environment"
  /opt/uv/bin/uv pip install --quiet --python "$environment/bin/python" --compile-bytecode --find-links /wheels \
    -r /requirements.lock
  cd "$environment"/lib/python3*/site-packages
  # The packages' own tests would be a tenth of the image.
  for package in matplotlib networkx numpy pandas pyarrow scipy sklearn sympy torch; do
    if test -d $package; then find $package -type d \( -name tests -o -name test \) -prune -exec rm -r {} +; fi
  done
  rm -rf torch/bin/test_* torch/bin/*benchmark*
  # As stages/environments.py marks an environment that is whole.
  sha256sum /requirements.lock | cut -d ' ' -f 1 >"$environment/.complete"
}

# Editable: configs/, prefect.yaml and the locks are found beside the code.
install_project() {
  /opt/uv/bin/uv pip install --quiet --no-deps --python "$(command -v python)" --editable /opt/martlet
  packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  python -m compileall -q /opt/martlet/stages /opt/martlet/flows "$packages"/__editable__*.py
  rm -f /tmp/uv-*.lock
  content >/opt/martlet/.content
}

# The same for the same files, whenever and wherever they were put together: the base's by the sums that the Dockerfile
# took, Debian packages added since by dpkg's list, Python packages by their RECORDs, the project's by their bytes.
content() {
  {
    cat /opt/base.sums
    sha256sum /var/lib/dpkg/status
    find /opt/environments -path '*.dist-info/RECORD' ! -path '*/martlet-*' -print0 | sort -z | xargs -0 sha256sum
    find /opt/martlet -type f ! -name '*.pyc' ! -name .content ! -path '*.egg-info/*' -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum | sed 's/^\([0-9a-f]*\).*/sha256:\1/'
}

step=$1
shift
"install_$step" "$@"
