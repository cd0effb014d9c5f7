#!/usr/bin/env bash
# What the program in FOLDER/usr/bin needs to run there with nothing else around it: the
# libraries that it and NVRTC load, CA certificates, a user. For deploy/Dockerfile.
set -euo pipefail

files=$1
program=$files/usr/bin/kiln

# The loader keeps its own path; the libraries are found in its default folders.
copy() { install -D -m 755 "$(readlink -f "$1")" "$files$1"; }
libraries() { ldd "$program" | grep -oE '/[^ ]+'; }
if ldd "$program" | grep -F 'not found'; then
    echo "the base image lacks libraries of the program" >&2
    exit 1
fi
for library in $(libraries); do copy "$library"; done
# NVRTC links with these by name; glibc has had their content in libc since 2.34.
folder=$(dirname "$(libraries | grep -m 1 'libc\.so')")
for name in libdl.so.2 libpthread.so.0 librt.so.1; do copy "$folder/$name"; done

# For an init container that gives a folder of the host to the user below.
install -D -m 755 /bin/chown "$files/usr/bin/chown"
for library in $(ldd /bin/chown | grep -oE '/[^ ]+'); do copy "$library"; done

rm -f "$files/opt/nvrtc/README.md"
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$files/etc/ssl/certs/ca-certificates.crt"
echo 'hosts: files dns' > "$files/etc/nsswitch.conf"
echo 'kiln:x:10001:10001:kiln:/var/lib/kiln:/sbin/nologin' > "$files/etc/passwd"
echo 'kiln:x:10001:' > "$files/etc/group"
install -d -o 10001 -g 10001 -m 750 "$files/var/lib/kiln"
install -d -m 1777 "$files/tmp"
