#!/bin/sh
# Builds limactl and its guest agent from the Go module into PREFIX: for machines that can have neither
# Homebrew nor Lima's release archives.   usage: limactl.sh PREFIX
set -eu
prefix=$1
cd "$(dirname "$0")/limactl"
module=github.com/lima-vm/lima/v2
go mod download $module
version=$(go list -m -f '{{.Version}}' $module | sed 's/^v//')
case $(go env GOARCH) in
  amd64) arch=x86_64 ;;
  arm64) arch=aarch64 ;;
  *) echo "limactl.sh: no Lima guest agent for $(go env GOARCH)" >&2; exit 1 ;;
esac
mkdir -p "$prefix/bin" "$prefix/share/lima"
CGO_ENABLED=0 go build -ldflags "-s -w" -o "$prefix/share/lima/lima-guestagent.Linux-$arch" $module/cmd/lima-guestagent
rm -rf "$prefix/share/lima/templates"
cp -R "$(go list -m -f '{{.Dir}}' $module)/templates" "$prefix/share/lima/templates"
chmod -R u+w "$prefix/share/lima/templates"
# Last, so that a build that was interrupted leaves no limactl that looks complete.
go build -ldflags "-s -w -X $module/pkg/version.Version=$version" -o "$prefix/bin/limactl" $module/cmd/limactl
"$prefix/bin/limactl" --version
