# ccache, where it is installed, makes rebuilds of unchanged sources free.
find_program(TOKCORE_CCACHE ccache)
if(TOKCORE_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${TOKCORE_CCACHE})
  # Generated .cu files are named relative to the build tree, so that every tree (the wheel has its own) shares them.
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_BINARY_DIR} CCACHE_NOHASHDIR=1
      ${TOKCORE_CCACHE})
endif()
