#!/bin/bash
# For root: prepares a Debian machine, copies the checkout to an ordinary account and runs `make TARGET` there.
# What the run leaves in build/ and dist/ comes back.   usage: as-account.sh ACCOUNT TARGET
set -euo pipefail
account=$1 target=$2
checkout=$(cd "$(dirname "$0")/../.." && pwd)

packages=(qemu-system-x86 qemu-utils ovmf ipxe-qemu seabios mmdebstrap uidmap openssh-client openssh-server
  openssh-sftp-server
  e2fsprogs rsync git make python3 python3-venv ca-certificates)
# A Node that is there already may come from elsewhere, with its own npm.
command -v npm >/dev/null || packages+=(nodejs npm)
case $target in test | test-full) packages+=(chromium) ;; esac
missing=()
for package in "${packages[@]}"; do
  dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  # The tests start an sshd of their own; the package's is not to serve anybody.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# After uidmap: useradd then gives the subordinate user ids that mmdebstrap works with.
id "$account" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$account"
home=$(getent passwd "$account" | cut -d: -f6)
# A machine that is put back to an earlier state may know the account and have lost its home.
[ -d "$home" ] || install --directory --mode=700 --owner="$account" --group="$(id -gn "$account")" "$home"
copy=$home/lima-kernels
rsync --archive --delete --chown="$account:" \
  --exclude=.git --exclude=/build --exclude=/dist --exclude=/.venv --exclude=node_modules --exclude='.*_cache' \
  --exclude=/lima_kernels/labextension --exclude=/lima_kernels/widget/static --exclude=/widgets/lib \
  "$checkout/" "$copy/"
# What root once made there (a linter's cache) would stop the account.
chown --recursive "$account:" "$copy"

# What package clients need to reach their registries goes along; nothing else of root's environment does.
go=$(command -v go || true)
node=$(command -v node || true)
# What is found there anyway keeps its place behind /usr/local.
[ "$node" != /usr/bin/node ] || node=
variables=(HOME="$home" USER="$account" LOGNAME="$account" SHELL=/bin/bash
  PATH="${go:+$(dirname "$go"):}${node:+$(dirname "$node"):}/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
while IFS= read -r name; do
  case $name in
    CI | ONLY | LANG | LC_* | TERM | TZ | PIP_* | UV_* | NPM_CONFIG_* | npm_config_* | SSL_CERT_* | REQUESTS_CA_BUNDLE | \
      CURL_CA_BUNDLE | NODE_EXTRA_CA_CERTS | *_proxy | *_PROXY) variables+=("$name=${!name}") ;;
  esac
done < <(compgen -e)
if [ -n "$go" ]; then
  for name in GOPROXY GOSUMDB GONOSUMDB GOPRIVATE GOFLAGS GOTOOLCHAIN; do
    variables+=("$name=$(go env "$name")")
  done
fi

# A run in the background has Ctrl-C's signal ignored, and so have all its programs: the tests send it.
status=0
setpriv --reuid="$account" --regid="$(id -g "$account")" --init-groups --inh-caps=-all \
  env --default-signal=INT,QUIT --ignore-environment --chdir="$copy" "${variables[@]}" make "$target" </dev/null || status=$?
for left in build dist; do
  [ ! -d "$copy/$left" ] || rsync --archive --chown="$(id -un):" "$copy/$left/" "$checkout/$left/"
done
if [ "$target" = demo ] && [ $status = 0 ]; then
  echo "Copied to: $checkout/build/01-first-kernel.ipynb"
fi
exit $status
