# The fonts of the built-in corpus. Sourced by launch/setup, which brings say(), $root and $log.
# shellcheck shell=bash

# Noto Color Emoji draws every picture; Symbola draws the second, monochrome view of many of them.
# package:file, the file as a shell pattern.
FONTS="fonts-noto-color-emoji:NotoColorEmoji.ttf fonts-symbola:Symbola[._]*ttf"

font_folders() {
  if [ -n "${MARVEL_FONT_DIR:-}" ]; then tr ':' '\n' <<<"$MARVEL_FONT_DIR"; fi
  for folder in "$root/.cache/fonts" /usr/share/fonts /usr/local/share/fonts \
    "$HOME/.fonts" "$HOME/.local/share/fonts" /Library/Fonts "$HOME/Library/Fonts"; do
    if [ -d "$folder" ]; then echo "$folder"; fi
  done
}

has_font() { # FILE PATTERN
  local found
  # A folder that cannot be read in full must not hide what was found elsewhere.
  found="$(font_folders | while IFS= read -r folder; do find -L "$folder" -name "$1" 2>/dev/null || true; done)"
  [ -n "$found" ]
}

# The packages whose font is nowhere to be found.
missing_fonts() {
  set -f
  for font in $FONTS; do has_font "${font#*:}" || echo "${font%%:*}"; done
  set +f
}

fonts_ready() { [ -z "$(missing_fonts)" ]; }

# As root: into the system. An index that was never fetched, or is stale, is fetched and tried again.
apt_install() {
  export DEBIAN_FRONTEND=noninteractive
  local options="-y -q --no-install-recommends -o DPkg::Lock::Timeout=180"
  # shellcheck disable=SC2086 # both are lists of words
  apt-get install $options "$@" || { apt-get update -q && apt-get install $options "$@"; }
}

# Without root: the packages are only unpacked, for this checkout alone.
apt_unpack() {
  local scratch="$root/.cache/fonts.partial"
  rm -rf "$scratch" && mkdir -p "$scratch/tree" "$root/.cache/fonts"
  (cd "$scratch" && apt-get download -q "$@") || return 1
  for deb in "$scratch"/*.deb; do dpkg-deb -x "$deb" "$scratch/tree" || return 1; done
  find "$scratch/tree" -name '*.[ot]tf' -exec mv {} "$root/.cache/fonts/" \;
  rm -rf "$scratch"
}

# Fetches what is missing where a Debian can, and else says what to do. Never ends the set-up: all
# but the built-in corpus works without the fonts.
get_fonts() {
  local packages
  mkdir -p "$root/.cache"
  packages="$(missing_fonts | tr '\n' ' ')"
  if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    say "fonts: ${packages% }"
    # shellcheck disable=SC2086 # a list of words
    if [ "$(id -u)" = 0 ]; then apt_install $packages; fi >>"$log" 2>&1 9>&- || true
    # shellcheck disable=SC2086
    fonts_ready || apt_unpack $packages >>"$log" 2>&1 9>&- || true
    if fonts_ready; then return; fi
    packages="$(missing_fonts | tr '\n' ' ')"
    say "these could not be had (see $log): ${packages% }"
    say "  with root rights: apt-get update && apt-get install ${packages% }"
  fi
  say "fonts of the built-in corpus that are missing:"
  case " $packages" in *" fonts-noto-color-emoji "*)
    say "  NotoColorEmoji.ttf, the bitmap (CBDT) build; Fedora: google-noto-color-emoji-fonts, Arch: noto-fonts-emoji" ;;
  esac
  case " $packages" in *" fonts-symbola "*)
    say "  Symbola.ttf (Debian: fonts-symbola, Fedora: gdouros-symbola-fonts)" ;;
  esac
  say "  put the files into $root/.cache/fonts, or name their folder in MARVEL_FONT_DIR"
}
