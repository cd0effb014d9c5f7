#!/usr/bin/env bash
# Puts kiln, its manual and its completions below a prefix, or takes them away again:
#
#   deploy/install.sh install PROGRAM
#   deploy/install.sh uninstall
#
# PREFIX (~/.local) is where they are used from; DESTDIR, empty by default, is put before it for
# those who make packages. What was installed is listed in PREFIX/share/kiln/installed: an
# uninstall removes that and nothing else.
set -euo pipefail

prefix=${PREFIX:-$HOME/.local}
destination=${DESTDIR:-}
list=$destination$prefix/share/kiln/installed

die() {
    echo "install: $*" >&2
    exit 1
}

case $prefix in
    /*) ;;
    *) die "PREFIX=$prefix is no absolute path: name one, such as PREFIX=$PWD/$prefix" ;;
esac

# put MODE FILE PLACE: a copy at PLACE, which is below the prefix.
put() {
    install -D -m "$1" "$2" "$destination$prefix/$3"
    printf '%s\n' "$3" >>"$list.part"
}

install_() {
    local program=$1 shell
    [ -x "$program" ] || die "$program is no program: cargo build"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"; rm -f "$list.part"' EXIT
    # Before anything is replaced: a program that does not run here is not installed.
    "$program" man --dir "$scratch/man1" >/dev/null
    for shell in bash zsh fish; do "$program" completions "$shell" >"$scratch/$shell"; done

    mkdir -p "$(dirname "$list")" || die "name a folder that you may write to: make install PREFIX=..."
    : >"$list.part"
    put 755 "$program" bin/kiln
    local page
    for page in "$scratch"/man1/*.1; do put 644 "$page" "share/man/man1/$(basename "$page")"; done
    put 644 "$scratch/bash" share/bash-completion/completions/kiln
    put 644 "$scratch/zsh" share/zsh/site-functions/_kiln
    put 644 "$scratch/fish" share/fish/vendor_completions.d/kiln.fish
    # What an earlier version had and this one has not.
    if [ -f "$list" ]; then
        grep -vxFf "$list.part" "$list" | while IFS= read -r page; do
            rm -f "$destination$prefix/$page"
        done || true
    fi
    mv "$list.part" "$list"

    echo "installed: $destination$prefix/bin/kiln ($("$program" --version)), its manual and completions"
    [ -z "$destination" ] || return 0
    local found
    found=$(command -v kiln || true)
    case :$PATH: in
        *:"$prefix/bin":*)
            [ "$found" = "$prefix/bin/kiln" ] ||
                echo "but \`kiln\` is $found here, which stands before it on PATH"
            ;;
        *)
            echo "$prefix/bin is not on PATH. For this shell, and in ~/.profile for the next ones:"
            # shellcheck disable=SC2016 # the reader's PATH
            printf '    export PATH=%q:"$PATH"\n' "$prefix/bin"
            ;;
    esac
}

uninstall() {
    [ -f "$list" ] || die "nothing is installed below $destination$prefix: name its PREFIX"
    local place
    while IFS= read -r place; do
        rm -f "$destination$prefix/$place"
    done <"$list"
    rm -f "$list"
    rmdir --ignore-fail-on-non-empty "$(dirname "$list")"
    echo "removed: $destination$prefix/bin/kiln, its manual and completions; nodes' folders are left"
}

case ${1:-} in
    install) install_ "${2:?the program to install}" ;;
    uninstall) uninstall ;;
    *)
        echo "usage: $0 install PROGRAM | uninstall" >&2
        exit 2
        ;;
esac
