def test_x(tiny_run): 
    print(tiny_run.said.err)
