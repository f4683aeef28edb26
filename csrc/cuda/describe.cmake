# Writes what a fat binary was made from: sources, targets and ptx are lists, output is the file. The digest is that of
# lines "<name> <SHA-256>"; fastdiff/kernels/cuda/compiler.py computes the same.
set(text "")
foreach(source IN LISTS sources)
  get_filename_component(name ${source} NAME)
  file(SHA256 ${source} digest)
  string(APPEND text "${name} ${digest}\n")
endforeach()
string(SHA256 digest "${text}")
list(JOIN targets "\", \"" targets)
file(WRITE ${output} "{\"sources\": \"${digest}\", \"architectures\": [\"${targets}\"], \"ptx\": \"${ptx}\"}\n")
