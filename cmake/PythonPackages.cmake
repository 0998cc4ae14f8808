# Where Python packages lie whose files the build reads.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)

# Sets ${result} to the folder of the importable package ${name}, or to "" where it is not installed.
function(tokcore_python_package_dir name result)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u; print([*u.find_spec('${name}').submodule_search_locations][0])"
    OUTPUT_VARIABLE folder
    ERROR_QUIET
    OUTPUT_STRIP_TRAILING_WHITESPACE)
  set(${result} "${folder}" PARENT_SCOPE)
endfunction()
