# shellcheck shell=bash
# For the scripts that bring something for the tests into .tools/: source it, and between `begin_fetch` and `end_fetch` fill
# the folder $aside. It takes its place by one rename, so that an interrupted script leaves nothing that looks finished.

aside=

begin_fetch() { # $1: the folder in .tools/, $2: the list of pins, $3: what is said
  fetched=.tools/$1 pins=$2
  # One at a time: a second one waits here and then finds the work done.
  exec 9<"$(dirname "$pins")"
  flock 9
  # The stamp is the list of pins itself: whoever changes a pin gets the new files.
  cmp --silent "$pins" "$fetched/$(basename "$pins")" && exit 0
  echo "$3"
  mkdir -p .tools
  rm -rf "$fetched".new.*
  aside=$(mktemp -d "$PWD/$fetched.new.XXXXXX")
  trap 'rm -rf "$aside"' EXIT
  chmod 755 "$aside"
}

end_fetch() {
  cp "$pins" "$aside/"
  rm -rf "$fetched"
  mv "$aside" "$fetched"
  trap - EXIT
}
