# Prepares a header for Doxygen, line by line in place:
# - names are read without the inline namespace, which only says what a file was compiled for;
# - the comments inside a concept, which document each of its requirements, go to the end of the concept's docstring.

function escaped(text) {
  gsub(/&/, "\\&amp;", text)
  gsub(/</, "\\&lt;", text)
  gsub(/>/, "\\&gt;", text)
  gsub(/#include/, "include", text)
  return text
}
function item(name, text) {
  if (text != "") items = items " <dt><code>" escaped(name) "</code></dt><dd>" escaped(text) "</dd>"
}
# The name that a requirement is about: `c.linear(...)`, `kept.slots()`, `P::parts(dims)`, `typename P::template Layer<T>`.
function required(code) {
  if (match(code, /(c|x|kept|d)\.[a-z_0-9]+|[CPD]::(template )?[A-Za-z_0-9]+/)) {
    code = substr(code, RSTART, RLENGTH)
    sub(/.*(\.|::)(template )?/, "", code)
    return code
  }
  return ""
}
function finish() {
  if (pending == "") return
  if (match(pending, /^[a-z_0-9]+: /)) item(substr(pending, 1, RLENGTH - 2), substr(pending, RLENGTH + 1))
  else if (name != "") item(name, pending)
  pending = ""
}

{
  sub(/^inline namespace LACONIC_ABI \{$/, "")
  sub(/^\}  \/\/ namespace LACONIC_ABI$/, "")
  line[NR] = $0
}
/^\/\/\// && !within { docstring = NR }
/^concept / { within = 1; items = pending = name = "" }
within {
  if (match($0, /^ *\/\/ -- /)) {
    finish()
    section = substr($0, RLENGTH + 1)
    sub(/ *-*$/, "", section)
    items = items " <dt><b>" escaped(section) "</b></dt><dd></dd>"
  } else if (match($0, /^ *\/\/ /)) {
    text = substr($0, RLENGTH + 1)
    if (pending != "" && text ~ /^[a-z_0-9]+: /) finish()
    pending = pending (pending == "" ? "" : " ") text
  } else {
    name = required($0)
    finish()
    if (name != "" && match($0, /; *\/\/ /)) item(name, substr($0, RSTART + RLENGTH))
  }
}
within && /^}?.*;$/ && !/^ / {
  if (items != "") line[docstring] = line[docstring] " <dl>" items "</dl>"
  within = 0
}
END { for (i = 1; i <= NR; ++i) print line[i] }
